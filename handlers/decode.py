"""From a request's JSON body to arrays that fit the signature, or to a clear refusal.

Three forms are taken, as TensorFlow Serving and KServe v1 write them:

- `{"inputs": value}` or `{"inputs": {name: value, ...}}`: whole tensors by name;
- `{"instances": [row, ...]}`: a list of rows, each a value or `{name: value, ...}`;
- a bare value (nested lists) for a model with one input, or `{name: value, ...}`.

A value may leave out the row axis: it is then one row, and so is its answer.

`handlers.oip` reads a fourth form, the Open Inference Protocol's, with the same checks of values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from formats.signature import Signature, TensorSpec
from handlers import jsontext
from handlers.errors import RequestError

__all__ = [
    "Array",
    "Body",
    "Question",
    "check",
    "check_shape",
    "count_rows",
    "decode",
    "describe",
    "named",
    "parse",
    "question",
    "to_array",
    "too_deep",
]

Array = npt.NDArray[Any]

Form = Literal["outputs", "predictions"]

# bfloat16 has no NumPy type: such inputs are read as float32 and narrowed by torch.
_NUMPY: Final = {"bfloat16": "float32"}
_KINDS: Final = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}
# Sizes that an error repeats; NumPy itself stops at 64 axes.
_LONGEST_SHAPE: Final = 64
_NOUNS: Final = {"f": "numbers", "i": "whole numbers", "u": "whole numbers", "b": "true or false"}


@dataclass(frozen=True)
class Question:
    """A decoded request.

    Attributes:
        arrays: one per input, in the signature's order, with the row axis where it has one.
        rows: how many rows it holds; 1 for a model without a row axis.
        single: whether the row axis was left out, so that the answer leaves it out too.
        form: the form of the answer: by output ("outputs") or by row ("predictions").
    """

    arrays: tuple[Array, ...]
    rows: int
    single: bool
    form: Form


@dataclass(frozen=True)
class Body:
    """A body that was JSON.

    Attributes:
        document: its value.
        suspicious: whether it has a word that NumPy would read as a number.
    """

    document: Any
    suspicious: bool


def decode(body: bytes, signature: Signature) -> Question:
    """Read a JSON body against a signature: `parse`, then `question`.

    Raises:
        RequestError: naming the input and what was expected.
    """
    return question(parse(body, signature), signature)


def parse(body: bytes, signature: Signature) -> Body:
    """Read JSON, whatever form it has.

    Raises:
        RequestError: there is no body, or it is not JSON.
    """
    if not body.strip():
        raise RequestError("empty_body", "the request has no body", expected=_usage(signature))
    try:
        document = jsontext.loads(body)
    except ValueError as error:
        raise RequestError(
            "not_json", f"the body is not JSON: {ascii(str(error))[1:-1]}", expected="JSON"
        ) from None
    except RecursionError:
        raise too_deep(signature) from None
    # NumPy reads [true, 1.5] as numbers. Only a body that has the words can hide one.
    return Body(document, b"true" in body or b"false" in body)


def question(body: Body, signature: Signature) -> Question:
    """Read one of the three forms against a signature.

    Raises:
        RequestError: naming the input and what was expected.
    """
    try:
        return _question(body.document, signature, body.suspicious)
    except RecursionError:
        raise too_deep(signature) from None


def too_deep(signature: Signature) -> RequestError:
    """Return the error for a body that Python cannot walk through."""
    return RequestError("wrong_shape", "the body is nested too deeply", expected=_usage(signature))


def _question(document: Any, signature: Signature, suspicious: bool) -> Question:
    form, columns = _columns(document, signature)
    arrays = []
    singles = []
    for spec in signature.inputs:
        array = to_array(columns[spec.name], spec, suspicious)
        single = form == "outputs" and signature.row_axis and array.ndim == len(spec.shape) - 1
        check(array, spec, spec.shape[1:] if single else spec.shape)
        arrays.append(array[np.newaxis] if single else array)
        singles.append(single)
    rows = count_rows(arrays, singles, signature)
    return Question(tuple(arrays), rows, singles[0], form)


def _usage(signature: Signature) -> str:
    inputs = ", ".join(f'"{spec.name}": {spec}' for spec in signature.inputs)
    return f'{{"inputs": {{{inputs}}}}}'


def _columns(document: Any, signature: Signature) -> tuple[Form, dict[str, Any]]:
    names = [spec.name for spec in signature.inputs]
    if not isinstance(document, dict):
        if len(names) > 1:
            raise RequestError(
                "missing_input",
                f"the model has {len(names)} inputs, so each must be named",
                input=names[1],
                expected=_usage(signature),
            )
        return "outputs", {names[0]: document}
    # Before the protocol's own keys, so that an input may be called "inputs" or "instances".
    if set(document) == set(names) and not isinstance(document[names[0]], dict):
        return "outputs", document
    if "inputs" in document:
        inputs = document["inputs"]
        if not isinstance(inputs, dict):
            return "outputs", _columns(inputs, signature)[1]
        return "outputs", named(inputs, signature)
    if "instances" in document:
        return "predictions", _instances(document["instances"], signature)
    return "outputs", named(document, signature)


def _instances(instances: Any, signature: Signature) -> dict[str, list[Any]]:
    names = [spec.name for spec in signature.inputs]
    if not signature.row_axis:
        raise RequestError(
            "no_rows", '"instances" lists rows, and this model has none', expected=_usage(signature)
        )
    if not isinstance(instances, list):
        raise RequestError(
            "wrong_type", '"instances" is not a list of rows', expected="a list of at least one row"
        )
    if not instances:
        raise RequestError(
            "empty_input", '"instances" is empty', expected="a list of at least one row"
        )
    if len(names) == 1 and not isinstance(instances[0], dict):
        return {names[0]: instances}
    rows = []
    for number, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise RequestError(
                "wrong_type",
                f'row {number} of "instances" is {describe(instance)}',
                expected=f"an object with {', '.join(names)}",
            )
        rows.append(named(instance, signature, f" in row {number}"))
    return {name: [row[name] for row in rows] for name in names}


def named(
    columns: dict[str, Any], signature: Signature, where: str = "", usage: str | None = None
) -> dict[str, Any]:
    """Return the same, if it has each of the model's inputs and nothing else.

    Args:
        columns: by name.
        signature: names the inputs.
        where: said behind the message, e.g. " in row 3".
        usage: what to expect; by default the form with names.

    Raises:
        RequestError: an input is missing, or there is no such input.
    """
    expected = usage or _usage(signature)
    for spec in signature.inputs:
        if spec.name not in columns:
            raise RequestError(
                "missing_input",
                f"input {spec.name!r} is missing{where}",
                input=spec.name,
                expected=expected,
            )
    unknown = [name for name in columns if name not in {spec.name for spec in signature.inputs}]
    if unknown:
        raise RequestError(
            "unknown_input",
            f"the model has no input {ascii(unknown[0])[:80]}{where}",
            expected=expected,
        )
    return columns


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
    target = np.dtype(_NUMPY.get(spec.dtype, spec.dtype))
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
            expected=_shapes(spec),
        )


def _shapes(spec: TensorSpec) -> str:
    return f"{spec} (-1 is any size)" if -1 in spec.shape else str(spec)


def _check_range(array: Array, spec: TensorSpec, low: float, high: float, name: str) -> None:
    if array.min() >= low and array.max() <= high:
        return
    index = tuple(int(i) for i in np.argwhere((array < low) | (array > high))[0])
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
        code, message, input=spec.name, expected=f"{noun}, nested as {_shapes(spec)}"
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
