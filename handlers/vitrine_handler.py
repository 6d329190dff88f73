"""The archive's entry point: TorchServe imports this file by name from the archive's root."""

from handlers.torchserve import TorchServeAdapter


class VitrineHandler(TorchServeAdapter):
    """TorchServe wants exactly one class of its own in the handler's file."""
