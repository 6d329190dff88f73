"""Starts TorchServe, waits until every model is ready, and stops it with nothing left behind."""
