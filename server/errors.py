"""What can go wrong, as one sentence for the person who started the server.

ServerError             anything below; carries the exit code of the process
├── UsageError          2: something has to be changed before a start can work
└── ServingError        1: a model cannot be loaded, or TorchServe ended by itself
"""

__all__ = ["ServerError", "ServingError", "UsageError"]


class ServerError(Exception):
    """An error whose text is all that is shown: no traceback.

    Attributes:
        exit_code: What the process exits with.
    """

    exit_code = 1


class UsageError(ServerError):
    """The options, the store or the machine are not as a start needs them."""

    exit_code = 2


class ServingError(ServerError):
    """A model cannot be loaded, or TorchServe ended without having been asked to."""
