"""A recorded request: what was sent, and what the model answered, as one line of JSON."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from formats.document import FormatError

__all__ = ["HEADERS", "Recording", "Tensor"]

_KIND: Final = "vitrine.recording"
VERSION: Final = 1
HEADERS: Final = (
    "content-type",
    "content-encoding",
    "inference-header-content-length",
    "accept",
    "x-activations",
)
"""The headers that are kept: what decides how a request is read, and whether it is refused."""


@dataclass(frozen=True)
class Tensor:
    """One output.

    Attributes:
        name: of the output.
        dtype: by NumPy's name; "float32" for bfloat16.
        shape: with the row axis, where the model has one.
        data: little-endian, row by row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Recording:
    """A request and what became of it. It holds what the client sent.

    Attributes:
        time: RFC 3339 in UTC with milliseconds.
        model: the model's name.
        model_version: the version that answered.
        request_id: the server's id of the request.
        headers: those of `HEADERS` that the request had.
        body: as it was sent.
        outputs: what the model answered; empty for a request that ended in an error.
        error: the error's code, or None.
    """

    time: str
    model: str
    model_version: str
    request_id: str
    headers: Mapping[str, str]
    body: bytes
    outputs: tuple[Tensor, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values; bytes are base64, a body that is ASCII is text."""
        text = self.body.isascii()
        return {
            "format": _KIND,
            "version": VERSION,
            "time": self.time,
            "model": self.model,
            "model_version": self.model_version,
            "request_id": self.request_id,
            "error": self.error,
            "headers": dict(self.headers),
            "body" if text else "body_base64": self.body.decode() if text else _text(self.body),
            "outputs": [
                {
                    "name": one.name,
                    "dtype": one.dtype,
                    "shape": list(one.shape),
                    "base64": _text(one.data),
                }
                for one in self.outputs
            ],
        }

    @classmethod
    def parse(cls, line: bytes) -> "Recording":
        """Read a line that `to_json` became.

        Raises:
            FormatError: it is no such line, is cut short, or is of another version.
        """
        try:
            found = json.loads(line)
            if not isinstance(found, dict) or found.get("format") != _KIND:
                raise FormatError(f"it is not a {_KIND} record")
            if found["version"] != VERSION:
                raise FormatError(
                    f"it has version {found['version']!r}; this Vitrine reads {VERSION}"
                )
            return cls._of(found)
        except FormatError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FormatError(f"it is not a whole record ({type(error).__name__})") from None

    @classmethod
    def _of(cls, found: dict[str, Any]) -> "Recording":
        error, headers = found["error"], found["headers"]
        known = {name: found[name] for name in ("time", "model", "model_version", "request_id")}
        texts = [*known.values(), *headers, *headers.values(), *([] if error is None else [error])]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
        body = found["body"].encode() if "body" in found else _bytes(found["body_base64"])
        outputs = tuple(
            Tensor(
                str(one["name"]),
                str(one["dtype"]),
                tuple(int(size) for size in one["shape"]),
                _bytes(one["base64"]),
            )
            for one in found["outputs"]
        )
        return cls(**known, headers=headers, body=body, outputs=outputs, error=error)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
