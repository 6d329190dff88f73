"""Errors that a client is told, in one JSON form."""

from typing import Any

__all__ = ["ModelError", "RequestError"]


class RequestError(Exception):
    """One request cannot be answered; nobody else's answer is affected.

    Args:
        code: a short stable identifier, e.g. "wrong_shape".
        message: what was wrong, for people.
        status: the HTTP status.
        input: the name of the input that was wrong, if one was.
        expected: what would have been right.
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

    def to_json(self) -> dict[str, Any]:
        """Return `{"error": {"code", "message"[, "input"][, "expected"]}}`."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.input is not None:
            error["input"] = self.input
        if self.expected is not None:
            error["expected"] = self.expected
        return {"error": error}


class ModelError(RequestError):
    """The model itself raised on a valid input."""
