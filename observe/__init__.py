"""Reads activation logs: what a model's layers look like, over time and in one request.

Knows the log's lines and the archive's baseline (`formats`), and nothing of serving or torch.
"""
