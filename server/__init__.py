"""Starts TorchServe, waits until every model is ready, and stops it with nothing left behind."""

#: As in pyproject.toml, which the image does not hold.
__version__ = "0.1.0"
