"""Errors that a client is told, as JSON."""

from typing import Any

from formats.error import error_to_json

__all__ = ["ModelError", "RequestError"]


class RequestError(Exception):
    """One request cannot be answered; nobody else's answer is affected.

    Args:
        code: a short stable identifier, e.g. "wrong_shape".
        message: what was wrong, for people.
        status: the HTTP status.
        input: the name of the input that was wrong, if one was.
        expected: what would have been right.

    Attributes:
        oip: whether the request could be seen to be in the Open Inference Protocol.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 400,
        input: str | None = None,
        expected: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.input = input
        self.expected = expected
        self.oip = False

    def to_json(self, *, flat: bool = False) -> dict[str, Any]:
        """Return what `formats.error` makes of it."""
        return error_to_json(
            self.code, self.message, input=self.input, expected=self.expected, flat=flat
        )


class ModelError(RequestError):
    """The model itself raised on a valid input."""
