"""From an `nn.Module` to verified TorchScript in a `.mar` archive.

`python -m export MODEL_FILE...` runs the stages in order: definition → TorchScript →
signature → parity → rows → archive.
"""
