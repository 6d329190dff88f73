"""The inputs of a request of the Open Inference Protocol: in JSON, or raw behind it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from formats.datatypes import DATATYPES
from formats.signature import Signature, TensorSpec
from handlers.datatypes import from_raw, raw_size
from handlers.decode import Body, Question, named
from handlers.errors import RequestError
from handlers.values import Array, check, check_shape, count_rows, describe, to_array

__all__ = ["by_name", "parameters_of", "read"]

_SIZE = "binary_data_size"


def read(body: Body, tail: memoryview | None, signature: Signature) -> Question:
    """Read the inputs.

    Args:
        body: the JSON.
        tail: the bytes behind it, or None where the request has no header that says there are.
        signature: of the model.

    Raises:
        RequestError: naming the input and what was expected.
        RecursionError: the JSON is nested too deeply.
    """
    usage = _usage(signature)
    entries = by_name(body.document["inputs"], "inputs", usage)
    named(entries, signature, usage=usage)
    raw = _parts(entries, tail)
    arrays = [
        _input(entries[spec.name], raw.get(spec.name), spec, body.suspicious)
        for spec in signature.inputs
    ]
    rows = count_rows(arrays, [False] * len(arrays), signature)
    return Question(tuple(arrays), rows, False, "outputs")


def by_name(entries: Sequence[Any], place: str, usage: str) -> dict[str, dict[str, Any]]:
    """Return entries of the request by their names, in order.

    Args:
        entries: a list of the request.
        place: what the request calls it.
        usage: what to expect in it.

    Raises:
        RequestError: one is no object, or has no name or another's.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        where = f'entry {number} of "{place}"'
        if not isinstance(entry, dict):
            raise RequestError("wrong_type", f"{where} is {describe(entry)}", expected=usage)
        if "name" not in entry:
            raise RequestError("missing_field", f'{where} has no "name"', expected=usage)
        name = entry["name"]
        if not isinstance(name, str):
            message = f"the name of {where} is {describe(name)}"
            raise RequestError("wrong_type", message, expected="a string")
        if name in found:
            message = f'{ascii(name)[:80]} is twice in "{place}"'
            raise RequestError("duplicate_name", message, expected="each name once")
        found[name] = entry
    return found


def parameters_of(owner: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the "parameters" of a part of the request; `name` is for the message.

    Raises:
        RequestError: they are not an object.
    """
    # Absent and null are the same, here and elsewhere: some clients write every field.
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RequestError(
            "wrong_type",
            f'"parameters" of {name} is {describe(parameters)}',
            expected="an object",
        )
    return parameters


def _usage(signature: Signature) -> str:
    inputs = ", ".join(_example(spec) for spec in signature.inputs)
    return f'{{"inputs": [{inputs}]}}'


def _example(spec: TensorSpec) -> str:
    return (
        f'{{"name": "{spec.name}", "shape": {list(spec.shape)}, '
        f'"datatype": "{DATATYPES[spec.dtype]}", "data": [...]}}'
    )


def _parts(entries: dict[str, dict[str, Any]], tail: memoryview | None) -> dict[str, memoryview]:
    """Cut the bytes behind the JSON into those of each input, in the order of the entries."""
    sizes = dict(_sizes(entries))
    if sizes and tail is None:
        raise RequestError(
            "missing_header",
            f"input {next(iter(sizes))!r} has a {_SIZE}, and the request does not say where "
            "its JSON ends",
            input=next(iter(sizes)),
            expected="the header Inference-Header-Content-Length",
        )
    behind = tail if tail is not None else memoryview(b"")
    if sum(sizes.values()) != len(behind):
        raise RequestError(
            "wrong_size",
            f"{len(behind)} bytes stand behind the JSON, and the inputs claim "
            f"{min(sum(sizes.values()), 2**63)}",
            expected=f"as many bytes as the {_SIZE} of all inputs together",
        )
    parts = {}
    start = 0
    for name, size in sizes.items():
        parts[name] = behind[start : start + size]
        start += size
    return parts


def _sizes(entries: dict[str, dict[str, Any]]) -> Iterable[tuple[str, int]]:
    for name, entry in entries.items():
        parameters = parameters_of(entry, f"input {name!r}")
        if _SIZE not in parameters:
            continue
        size = parameters[_SIZE]
        # Not isinstance: true is an int.
        if type(size) is not int or size < 0:
            message = f"the {_SIZE} of input {name!r} is {describe(size)}"
            raise RequestError("wrong_type", message, input=name, expected="a number of bytes")
        if "data" in entry:
            message = f'input {name!r} has both "data" and a {_SIZE}'
            raise RequestError("wrong_size", message, input=name, expected="one of them")
        yield name, size


def _input(
    entry: dict[str, Any], raw: memoryview | None, spec: TensorSpec, suspicious: bool
) -> Array:
    """Return an array of the signature's dtype and of the shape that the entry says.

    Raises:
        RequestError: a key is missing or wrong, or they do not fit each other or the spec.
    """
    for key in ("shape", "datatype", "data") if raw is None else ("shape", "datatype"):
        if key not in entry:
            raise RequestError(
                "missing_field",
                f'input {spec.name!r} has no "{key}"{_elsewhere(entry, key)}',
                input=spec.name,
                expected=_example(spec),
            )
    _check_datatype(entry["datatype"], spec)
    shape = _shape(entry["shape"], spec)
    # Before any arithmetic with sizes, so that their number is small.
    check_shape(shape, spec, spec.shape)
    if raw is not None:
        array = _from_raw(raw, shape, spec)
    else:
        array = _from_json(entry["data"], shape, spec, suspicious)
    check(array, spec, spec.shape)
    return array


def _elsewhere(entry: dict[str, Any], key: str) -> str:
    parameters = entry.get("parameters")
    if key == "data" and isinstance(parameters, dict) and "shared_memory_region" in parameters:
        return ', and "shared_memory_region" is not supported'
    return ""


def _check_datatype(datatype: Any, spec: TensorSpec) -> None:
    expected = DATATYPES[spec.dtype]
    if datatype == expected:
        return
    if datatype == "BYTES":
        message = f"input {spec.name!r} has datatype 'BYTES', and no model here takes strings"
    elif isinstance(datatype, str) and datatype in DATATYPES.values():
        message = f"input {spec.name!r} has datatype {datatype!r}, and nothing is cast"
    elif isinstance(datatype, str):
        message = f"input {spec.name!r} has the unknown datatype {ascii(datatype)[:80]}"
    else:
        message = f"the datatype of input {spec.name!r} is {describe(datatype)}"
    raise RequestError("wrong_datatype", message, input=spec.name, expected=expected)


def _shape(value: Any, spec: TensorSpec) -> tuple[int, ...]:
    if isinstance(value, list):
        wrong = [size for size in value if type(size) is not int or not 0 <= size < 2**63]
        found = f"holds {describe(wrong[0])}" if wrong else ""
    else:
        found = f"is {describe(value)}"
    if found:
        raise RequestError(
            "wrong_shape",
            f"the shape of input {spec.name!r} {found}",
            input=spec.name,
            expected="a list of whole numbers, one for each axis",
        )
    return tuple(value)


def _from_raw(raw: memoryview, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    wanted = raw_size(spec.dtype, shape)
    if len(raw) != wanted:
        raise RequestError(
            "wrong_size",
            f"input {spec.name!r} has {len(raw)} bytes, and its shape and datatype make {wanted}",
            input=spec.name,
            expected=f"a {_SIZE} of {wanted}",
        )
    return from_raw(raw, spec, shape)


def _from_json(data: Any, shape: tuple[int, ...], spec: TensorSpec, suspicious: bool) -> Array:
    if not isinstance(data, list):
        raise RequestError(
            "wrong_type",
            f"the data of input {spec.name!r} is {describe(data)}",
            input=spec.name,
            expected="a list of values, flat or nested",
        )
    array = to_array(data, spec, suspicious)
    if array.shape == shape:
        return array
    size = math.prod(shape)
    if array.shape == (size,):
        return array.reshape(shape)
    flat = array.ndim == 1
    has = f"{array.size} values" if flat else f"values nested as {list(array.shape)}"
    raise RequestError(
        "wrong_shape",
        f"input {spec.name!r} says it has shape {list(shape)}, but its data has {has}",
        input=spec.name,
        expected=f"{size} values, flat or nested as the shape says",
    )
