"""The values of a request: from JSON to arrays of the signature's dtypes, and what they must be.

Every form of a request ends here, so that the same value is refused in the same words.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from formats.signature import Signature, TensorSpec
from handlers.errors import RequestError

__all__ = [
    "Array",
    "check",
    "check_shape",
    "count_rows",
    "describe",
    "shapes",
    "to_array",
    "working_dtype",
]

Array = npt.NDArray[Any]

_KINDS: Final = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}
# Sizes that an error repeats; NumPy itself stops at 64 axes.
_LONGEST_SHAPE: Final = 64
_NOUNS: Final = {"f": "numbers", "i": "whole numbers", "u": "whole numbers", "b": "true or false"}


def working_dtype(name: str) -> "np.dtype[Any]":
    """Return the NumPy type that holds a dtype of the signature; float32 for bfloat16.

    bfloat16 has no NumPy type: such inputs are widened, and narrowed by torch.
    """
    return np.dtype("float32" if name == "bfloat16" else name)


def to_array(value: Any, spec: TensorSpec, suspicious: bool) -> Array:
    """Turn nested lists into an array of the spec's dtype, refusing what NumPy would coerce.

    Args:
        value: lists of any depth; nothing is said of their shape here.
        spec: the input they are for.
        suspicious: whether `true` or `false` may hide among numbers.

    Returns:
        A contiguous array of the spec's dtype, float32 for bfloat16, with the shape of `value`.

    Raises:
        RequestError: it is empty or ragged, or a value is of another kind or does not fit.
    """
    target = working_dtype(spec.dtype)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        array = np.empty(0, dtype=object)
    if array.size == 0 and array.dtype != object:
        raise RequestError(
            "empty_input", f"input {spec.name!r} is empty", input=spec.name, expected=str(spec)
        )
    hidden = suspicious and target.kind != "b" and _has_bool(value)
    if array.dtype.kind not in _KINDS[target.kind] or hidden:
        raise _wrong_value(value, spec, target)
    if target.kind in "iu":
        info = np.iinfo(target)
        _check_range(array, spec, info.min, info.max, f"the range of {spec.dtype}")
    return _narrowed(array, spec, target)


def _narrowed(array: Array, spec: TensorSpec, target: "np.dtype[Any]") -> Array:
    with np.errstate(over="ignore"):
        narrowed = np.ascontiguousarray(array.astype(target, copy=False))
    if array.ndim == 0:
        narrowed = narrowed.reshape(())
    if target.kind == "f" and not np.isfinite(narrowed).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(narrowed))[0])
        raise RequestError(
            "out_of_range",
            f"input {spec.name!r} at {_at(index)} does not fit {spec.dtype}",
            input=spec.name,
            expected=f"finite {spec.dtype} values",
        )
    return narrowed


def check(array: Array, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Compare an array with the shape it must have, and its values with the spec's bounds.

    Raises:
        RequestError: naming the input and what was expected.
    """
    check_shape(array.shape, spec, shape)
    if spec.minimum is not None or spec.maximum is not None:
        low = -math.inf if spec.minimum is None else spec.minimum
        high = math.inf if spec.maximum is None else spec.maximum
        _check_range(array, spec, low, high, f"[{low:g}, {high:g}]")


def check_shape(found: Sequence[int], spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Compare a shape with the one it must be; -1 is any size.

    Raises:
        RequestError: naming the input and the shape that was expected.
    """
    fits = len(found) == len(shape) and all(
        wanted in (-1, got) for wanted, got in zip(shape, found, strict=True)
    )
    if not fits:
        more = ", ..." if len(found) > _LONGEST_SHAPE else ""
        listed = ", ".join(map(str, found[:_LONGEST_SHAPE]))
        raise RequestError(
            "wrong_shape",
            f"input {spec.name!r} has shape [{listed}{more}]",
            input=spec.name,
            expected=shapes(spec),
        )


def shapes(spec: TensorSpec) -> str:
    """Return what a message expects of an input, e.g. `float32[-1, 8, 8] (-1 is any size)`."""
    return f"{spec} (-1 is any size)" if -1 in spec.shape else str(spec)


def _check_range(array: Array, spec: TensorSpec, low: float, high: float, name: str) -> None:
    if array.min() >= low and array.max() <= high:
        return
    # So put, NaN is outside too; only raw tensors can hold one.
    index = tuple(int(i) for i in np.argwhere(~((array >= low) & (array <= high)))[0])
    raise RequestError(
        "out_of_range",
        f"input {spec.name!r} at {_at(index)} is {array[index]}, outside {name}",
        input=spec.name,
        expected=f"values in {name}",
    )


def count_rows(arrays: Sequence[Array], singles: Sequence[bool], signature: Signature) -> int:
    """Return how many rows the inputs hold; 1 for a model without a row axis.

    Args:
        arrays: one per input, with the row axis where it has one.
        singles: per input, whether the request left that axis out.
        signature: names the inputs.

    Raises:
        RequestError: the inputs do not agree.
    """
    if not signature.row_axis:
        return 1
    counts = {len(array) for array in arrays}
    if len(counts) > 1 or len(set(singles)) > 1:
        sizes = ", ".join(
            f"{spec.name}: {len(array)}{' (row axis left out)' if single else ''}"
            for spec, array, single in zip(signature.inputs, arrays, singles, strict=True)
        )
        raise RequestError(
            "wrong_shape",
            f"the inputs hold different numbers of rows ({sizes})",
            input=signature.inputs[-1].name,
            expected="the same number of rows in every input",
        )
    return counts.pop()


def _has_bool(value: Any) -> bool:
    if isinstance(value, list):
        return any(_has_bool(child) for child in value)
    return isinstance(value, bool)


def _wrong_value(value: Any, spec: TensorSpec, target: "np.dtype[Any]") -> RequestError:
    noun = _NOUNS[target.kind]
    found = _first_wrong(value, target, ())
    depth = _depth(value)
    if found is None and depth > len(spec.shape):
        message = f"input {spec.name!r} is nested {depth} deep"
        code = "wrong_shape"
    elif found is None:
        message = f"input {spec.name!r} is ragged: lists at the same depth differ in length"
        code = "ragged"
    else:
        index, wrong = found
        message = f"input {spec.name!r} at {_at(index)} is {describe(wrong)}, not {_one(noun)}"
        code = "wrong_type"
    return RequestError(
        code, message, input=spec.name, expected=f"{noun}, nested as {shapes(spec)}"
    )


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list) and value:
        value = value[0]
        depth += 1
    return depth


def _first_wrong(
    value: Any, target: "np.dtype[Any]", index: tuple[int, ...]
) -> tuple[tuple[int, ...], Any] | None:
    if isinstance(value, list):
        for position, child in enumerate(value):
            found = _first_wrong(child, target, (*index, position))
            if found is not None:
                return found
        return None
    if target.kind == "b":
        right = isinstance(value, bool)
    elif target.kind == "f":
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
    else:
        right = isinstance(value, int) and not isinstance(value, bool)
    # An integer beyond 64 bits makes NumPy give up on the whole array.
    if right and isinstance(value, int) and abs(value) >= 2**63:
        return index, value
    return None if right else (index, value)


def _at(index: tuple[int, ...]) -> str:
    return "".join(f"[{i}]" for i in index) or "its top"


def _one(noun: str) -> str:
    return {"numbers": "a number", "whole numbers": "a whole number"}.get(noun, noun)


def describe(value: Any) -> str:
    """Return words for a JSON value that should not be where it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {ascii(value)[:40]}"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "an integer beyond 64 bits"
    if isinstance(value, (int, float)):
        return f"{value!r}"
    return "an object" if isinstance(value, dict) else "a list"
