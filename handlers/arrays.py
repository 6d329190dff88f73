"""A body that is one array: a `.npy` file, or raw bytes that the signature gives a shape.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html describes the file.
"""

import io
import math
import warnings
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy

from formats.signature import Signature, TensorSpec
from handlers.datatypes import Buffer, from_raw, item_size
from handlers.decode import Question
from handlers.errors import RequestError
from handlers.values import Array, check, check_shape, count_rows, shapes, working_dtype

__all__ = ["from_npy", "from_octets", "to_npy"]

# np.save writes 128 bytes for an array without fields.
_LONGEST_HEADER: Final = 4096
_READERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_OIP: Final = "the Open Inference Protocol with binary tensors, or JSON"


def from_npy(body: Buffer, signature: Signature) -> Question:
    """Read a `.npy` file. An array without the row axis is one row, and so is its answer.

    Raises:
        RequestError: it is no such file, does not fit the signature, or the model has other
            inputs than one (status 415).
    """
    spec = _only_input(signature)
    dtype, shape, fortran, start = _header(body)
    _check_dtype(dtype, spec)
    single = signature.row_axis and len(shape) == len(spec.shape) - 1
    check_shape(shape, spec, spec.shape[1:] if single else spec.shape)
    # Sizes are compared before anything is made of them.
    size = math.prod(shape) * dtype.itemsize
    if len(body) - start != size:
        raise RequestError(
            "wrong_size",
            f"the file's header makes {min(size, 2**63)} bytes, and {len(body) - start} follow it",
            input=spec.name,
            expected="a whole .npy file",
        )
    if not size:
        message = f"input {spec.name!r} is empty"
        raise RequestError("empty_input", message, input=spec.name, expected=str(spec))
    flat = np.frombuffer(memoryview(body)[start:], dtype)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    array = array.astype(working_dtype(spec.dtype), order="C", copy=False)
    return _question(array, spec, signature, single=single)


def from_octets(body: Buffer, signature: Signature) -> Question:
    """Read raw little-endian values of the input's dtype, row by row.

    Raises:
        RequestError: the bytes make no shape that the signature allows, or the model has other
            inputs than one (status 415).
    """
    spec = _only_input(signature)
    array = from_raw(body, spec, _shape(len(body), spec))
    return _question(array, spec, signature, single=False)


def to_npy(array: Array) -> bytes:
    """Return a `.npy` file of an array."""
    file = io.BytesIO()
    npy.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def _question(array: Array, spec: TensorSpec, signature: Signature, *, single: bool) -> Question:
    check(array, spec, spec.shape[1:] if single else spec.shape)
    rows = array[np.newaxis] if single else array
    return Question((rows,), count_rows([rows], [single], signature), single, "outputs")


def _only_input(signature: Signature) -> TensorSpec:
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise RequestError(
            "unsupported_media_type",
            f"such a body is one array, and the model has the inputs {names}",
            status=415,
            expected=_OIP,
        )
    return signature.inputs[0]


def _header(body: Buffer) -> tuple["np.dtype[Any]", tuple[int, ...], bool, int]:
    """Return the dtype, the shape, whether the order is Fortran's, and where the data starts."""
    file = io.BytesIO(bytes(body[: _LONGEST_HEADER + npy.MAGIC_LEN + 4]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = _READERS[npy.read_magic(file)]
            shape, fortran, dtype = read(file, max_header_size=_LONGEST_HEADER)
    except Exception:
        # Python's own parser is behind the header: it raises much else than ValueError, and warns.
        raise _not_npy("its header cannot be read") from None
    if not all(type(size) is int and size >= 0 for size in shape):
        raise _not_npy("its shape is none")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise _not_npy(f"it holds {str(dtype)!a}"[:100])
    return dtype, shape, fortran, file.tell()


def _not_npy(what: str) -> RequestError:
    return RequestError(
        "not_npy",
        f"the body is not a .npy file that can be read: {what}",
        expected="what np.save(file, array, allow_pickle=False) writes of numbers or booleans",
    )


def _check_dtype(found: "np.dtype[Any]", spec: TensorSpec) -> None:
    """Refuse a dtype that has values which the input's has not.

    bfloat16 is the exception: a file has no such type, so float32 is taken and rounded.
    """
    wanted = working_dtype(spec.dtype)
    # NumPy calls an 8-byte integer safe in a float64, which rounds beyond 2**53.
    rounds = found.kind in "iu" and wanted.kind == "f" and found.itemsize >= wanted.itemsize
    if (found.kind == "b") == (wanted.kind == "b") and not rounds and np.can_cast(found, wanted):
        return
    raise RequestError(
        "wrong_datatype",
        f"the file holds {found}, which does not fit {spec.dtype} without loss",
        input=spec.name,
        expected=f"{wanted}: np.save(file, array.astype({wanted.name!r}))",
    )


def _shape(size: int, spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape that a number of bytes makes, where at most one dimension is free."""
    free = spec.shape.count(-1)
    if free > 1:
        raise RequestError(
            "unknown_shape",
            f"input {spec.name!r} is {spec}: bytes alone do not tell its shape",
            input=spec.name,
            expected=f"application/x-npy, {_OIP}",
        )
    unit = math.prod(length for length in spec.shape if length != -1) * item_size(spec.dtype)
    count, rest = divmod(size, unit) if unit else (0, size)
    if rest or not count or (not free and count != 1):
        per = "for each unit of the free dimension" if free else "in all"
        raise RequestError(
            "wrong_size",
            f"the body has {size} bytes, which make no {spec}",
            input=spec.name,
            expected=f"{unit} bytes {per}: {shapes(spec)}",
        )
    return tuple(count if length == -1 else length for length in spec.shape)
