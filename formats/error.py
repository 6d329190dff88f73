"""What a client is told of an error, as JSON: nested, or, in the Open Inference Protocol, flat.

The protocol says that `error` is a string, and its clients print it. `server/haproxy.cfg` writes
the same two forms.
"""

from typing import Any

__all__ = ["error_to_json"]


def error_to_json(
    code: str,
    message: str,
    *,
    input: str | None = None,
    expected: str | None = None,
    flat: bool = False,
) -> dict[str, Any]:
    """Write an error.

    Args:
        code: a short stable identifier, e.g. "wrong_shape".
        message: what was wrong, for people.
        input: the name of the input that was wrong, if one was.
        expected: what would have been right.
        flat: the protocol's form.

    Returns:
        `{"error": {"code", "message"[, "input"][, "expected"]}}`, or flat
        `{"error": "message[; expected ...]", "code"[, "input"][, "expected"]}`.
    """
    beside = {"input": input, "expected": expected}
    found = {name: value for name, value in beside.items() if value is not None}
    if not flat:
        return {"error": {"code": code, "message": message, **found}}
    said = message if expected is None else f"{message}; expected {expected}"
    return {"error": said, "code": code, **found}
