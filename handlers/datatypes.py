"""Tensors as raw bytes, as in Triton's binary tensor data extension.

Little-endian, row by row, nothing between elements, one byte 0 or 1 for a BOOL.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from formats.signature import TensorSpec
from handlers.errors import RequestError
from handlers.values import Array, working_dtype

__all__ = ["Buffer", "from_raw", "item_size", "raw_size", "to_raw"]

Buffer = bytes | bytearray

_BFLOAT16_BITS: Final = 16


def item_size(dtype: str) -> int:
    """Return the bytes of one element of a dtype, by torch's name."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def raw_size(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a raw tensor: a Python number, which no shape overflows."""
    return math.prod(shape) * item_size(dtype)


def from_raw(data: Buffer | memoryview, spec: TensorSpec, shape: Sequence[int]) -> Array:
    """Read a raw tensor where it lies, without a copy (but for bfloat16, which is widened).

    Args:
        data: exactly `raw_size` bytes.
        spec: the input they are for.
        shape: of the tensor.

    Returns:
        An array of the spec's dtype, float32 for bfloat16; it may be read-only and not aligned.

    Raises:
        RequestError: it is empty, or a BOOL is neither 0 nor 1.
    """
    if not len(data):
        message = f"input {spec.name!r} is empty"
        raise RequestError("empty_input", message, input=spec.name, expected=str(spec))
    if spec.dtype == "bfloat16":
        upper = np.frombuffer(data, "<u2").astype(np.uint32) << _BFLOAT16_BITS
        return upper.view(np.float32).reshape(shape)
    little = working_dtype(spec.dtype).newbyteorder("<")
    array = np.frombuffer(data, little).reshape(shape)
    if spec.dtype == "bool" and array.view(np.uint8).max() > 1:
        raise RequestError(
            "wrong_type",
            f"input {spec.name!r} has a byte that is neither 0 nor 1",
            input=spec.name,
            expected="one byte, 0 or 1, for each BOOL",
        )
    return array


def to_raw(array: Array, dtype: str) -> Array:
    """Return an array whose memory is the raw tensor.

    Args:
        array: of `dtype`, or float32 for bfloat16, whose lower half is then zeros.
        dtype: by torch's name.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return (bits >> _BFLOAT16_BITS).astype("<u2")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
