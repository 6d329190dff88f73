"""JSON in and out: orjson where it is installed, the standard library where it is not.

Both readers refuse NaN and Infinity, which JSON does not have; both writers write null for
them and no indentation.
"""

import json
import math
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]

__all__ = ["RepeatedKeyError", "dumps", "loads"]


class RepeatedKeyError(ValueError):
    """An object has a key twice, so that readers differ in what it says; `key` is which."""

    def __init__(self, key: str) -> None:
        super().__init__(f"an object has the key {key!a} twice")
        self.key = key


def loads(text: bytes | bytearray) -> Any:
    """Read JSON in UTF-8. An object may have each key once.

    Raises:
        RepeatedKeyError: an object has a key twice.
        ValueError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """
    document = _read(text)
    # Readers keep the last of two equal keys, and say nothing. Where the document explains every
    # colon of its text no pair was dropped; else the standard library's reader looks, which takes
    # five to ten times as long. For 3 MB of numbers the colons cost 0.3 ms, reading costs 8.
    if _has_more(text, _colons(document)) or (b"\\" in text and b"\\u003" in text):
        json.loads(str(text, "utf-8"), object_pairs_hook=_refuse_repeated)
    return document


def _has_more(text: bytes | bytearray, colons: int) -> bool:
    # Not count(), which looks at one byte at a time.
    place = -1
    for _ in range(colons + 1):
        place = text.find(b":", place + 1)
        if place < 0:
            return False
    return True


def _read(text: bytes | bytearray) -> Any:
    if orjson is not None:
        with suppress(ValueError):
            return orjson.loads(text)
    # The standard library decides what is JSON and words the error, so that both installations
    # behave alike.
    return json.loads(str(text, "utf-8"), parse_constant=_refuse)


def _colons(value: Any) -> int:
    """Count the colons that a document was written with, or fewer: lists of lists are skipped."""
    if isinstance(value, dict):
        return sum(1 + key.count(":") + _colons(child) for key, child in value.items())
    if isinstance(value, list) and value and isinstance(value[0], (dict, str)):
        return sum(map(_colons, value))
    return value.count(":") if isinstance(value, str) else 0


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise RepeatedKeyError(key)
        seen.add(key)


def dumps(value: Any) -> bytes:
    """Write JSON; NumPy arrays become nested lists, NaN and infinities become null."""
    if orjson is not None:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    text = json.dumps(_nulls(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _plain(value: Any) -> Any:
    # What orjson does not take itself: 0-dimensional, non-contiguous and float16 arrays.
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _nulls(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        plain = value.tolist()
        return plain if value.dtype.kind != "f" or np.isfinite(value).all() else _nulls(plain)
    if isinstance(value, dict):
        return {key: _nulls(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nulls(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
