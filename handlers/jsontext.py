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

__all__ = ["dumps", "loads"]


def loads(text: bytes | bytearray | memoryview) -> Any:
    """Read JSON in UTF-8.

    Raises:
        ValueError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """
    if orjson is not None:
        with suppress(ValueError):
            return orjson.loads(text)
    # The standard library decides what is JSON and words the error, so that both installations
    # behave alike.
    return json.loads(str(text, "utf-8"), parse_constant=_refuse)


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
