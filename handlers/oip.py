"""The Open Inference Protocol (KServe v2, Triton): `POST /v2/models/NAME/infer`, in JSON.

`decode` reads a request into the same `Question` as any other form, so that it shares batches
with them, and into an `Envelope` that says how the answer is to look. `answer` makes named
`Tensor`s first and JSON of them last: another encoding of the protocol needs another reader of
tensors and another writer, and nothing between them.

A requested output may be called `activations/LAYER`: statistics of what that layer put out, or,
with the parameter `raw`, the values themselves. LAYER may be a glob.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from formats.activation import Activations, LayerRecord
from formats.layers import Layer
from formats.signature import Signature, TensorSpec
from handlers.decode import (
    Array,
    Body,
    Question,
    check,
    check_shape,
    count_rows,
    describe,
    named,
    to_array,
    too_deep,
)
from handlers.errors import RequestError
from handlers.observe import Wanted, layer_of, select

__all__ = ["Envelope", "Requested", "Tensor", "answer", "applies", "decode"]

PREFIX: Final = "activations/"
"""What the name of a requested output begins with when it is a layer's."""

COLUMNS: Final = ("elements", "mean", "std", "min", "max", "zero_fraction", "non_finite")
"""The columns of a tensor of statistics."""

_DATATYPES: Final = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}


@dataclass(frozen=True)
class Requested:
    """One output that a request asks for.

    Attributes:
        name: as it was written.
        layers: names of the layers that `activations/...` chose; empty for a model's output.
        raw: the layers' activations themselves rather than their statistics.
    """

    name: str
    layers: frozenset[str] = frozenset()
    raw: bool = False


@dataclass(frozen=True)
class Envelope:
    """What a request says beside its inputs.

    Attributes:
        outputs: what is asked for, in the order of the answer.
        id: the client's own, or None.
        wanted: the layers among the outputs; None when there are none.
    """

    outputs: tuple[Requested, ...]
    id: str | None = None
    wanted: Wanted | None = None


@dataclass(frozen=True)
class Tensor:
    """One output of an answer.

    Attributes:
        name: as clients know it.
        datatype: the protocol's name of its element type.
        array: its values; float32 for BF16.
        parameters: strings, numbers or booleans.
    """

    name: str
    datatype: str
    array: Array
    parameters: Mapping[str, str | float | bool] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the tensor with its values in one flat list, row by row."""
        fields: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.array.shape),
            "datatype": self.datatype,
        }
        if self.parameters:
            fields["parameters"] = dict(self.parameters)
        return {**fields, "data": self.array.ravel()}


def applies(body: Body) -> bool:
    """Tell whether a body is the protocol's: its "inputs" is a list of objects.

    No other form has objects there, and the first entry tells.
    """
    document = body.document
    if not isinstance(document, dict):
        return False
    inputs = document.get("inputs")
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict)


def decode(body: Body, signature: Signature, layers: Sequence[Layer]) -> tuple[Question, Envelope]:
    """Read a request of the protocol.

    Args:
        body: one that `applies`.
        signature: of the model.
        layers: those that hooks are compiled into.

    Returns:
        What it asks of the model, and how the answer is to look.

    Raises:
        RequestError: naming the input or output and what was expected.
    """
    try:
        question = _question(body, signature)
    except RecursionError:
        raise too_deep(signature) from None
    return question, _envelope(body.document, signature, layers)


def answer(
    envelope: Envelope,
    outputs: Sequence[Array],
    signature: Signature,
    seen: Activations | None,
    raw: Mapping[str, Array],
) -> dict[str, Any]:
    """Return the answer to one request.

    Args:
        envelope: of the request.
        outputs: one array per output of the signature, holding this request's rows only.
        signature: of the model.
        seen: statistics of this request's rows, where they were taken.
        raw: activations of this request by activation key; at least those it asks for.

    Returns:
        `{"model_name", "model_version"[, "id"][, "parameters"], "outputs"}`. The parameters are
        the flags of the activations, where any were asked for.
    """
    body: dict[str, Any] = {
        "model_name": signature.model,
        "model_version": signature.model_version,
    }
    if envelope.id is not None:
        body["id"] = envelope.id
    if envelope.wanted is not None and seen is not None:
        body["parameters"] = _flags(seen)
    own = {
        spec.name: Tensor(spec.name, _DATATYPES[spec.dtype], array)
        for spec, array in zip(signature.outputs, outputs, strict=True)
    }
    tensors: list[Tensor] = []
    for one in envelope.outputs:
        if not one.layers:
            tensors.append(own[one.name])
        elif one.raw:
            tensors += _activations(one, raw)
        elif seen is not None:
            tensors += _statistics(one, seen)
    body["outputs"] = [tensor.to_json() for tensor in tensors]
    return body


def _activations(one: Requested, raw: Mapping[str, Array]) -> list[Tensor]:
    return [
        Tensor(f"{PREFIX}{key}", _DATATYPES[array.dtype.name], array)
        for key, array in raw.items()
        if layer_of(key) in one.layers
    ]


def _statistics(one: Requested, seen: Activations) -> list[Tensor]:
    parameters = {"columns": ",".join(COLUMNS)}
    return [
        Tensor(f"{PREFIX}{key}", "FP64", _table(record), parameters)
        for key, record in seen.layers.items()
        if layer_of(key) in one.layers
    ]


def _table(record: LayerRecord) -> Array:
    """Return float64 [rows, 7], or [1, 7] for a layer without rows; NaN for what is None."""
    rows = record.rows or (record.total,)
    cells = [[getattr(row, column) for column in COLUMNS] for row in rows]
    return np.array(cells, dtype=np.float64)


def _flags(seen: Activations) -> dict[str, str]:
    # The protocol has no lists and no null among parameters.
    flags = {"dead": ",".join(seen.dead)}
    return flags if seen.non_finite is None else {"non_finite": seen.non_finite, **flags}


def _usage(signature: Signature) -> str:
    inputs = ", ".join(_example(spec) for spec in signature.inputs)
    return f'{{"inputs": [{inputs}]}}'


def _example(spec: TensorSpec) -> str:
    return (
        f'{{"name": "{spec.name}", "shape": {list(spec.shape)}, '
        f'"datatype": "{_DATATYPES[spec.dtype]}", "data": [...]}}'
    )


def _question(body: Body, signature: Signature) -> Question:
    usage = _usage(signature)
    entries = _by_name(body.document["inputs"], "inputs", usage)
    named(entries, signature, usage=usage)
    arrays = [_input(entries[spec.name], spec, body.suspicious) for spec in signature.inputs]
    rows = count_rows(arrays, [False] * len(arrays), signature)
    return Question(tuple(arrays), rows, False, "outputs")


def _by_name(entries: Sequence[Any], place: str, usage: str) -> dict[str, dict[str, Any]]:
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


def _input(entry: dict[str, Any], spec: TensorSpec, suspicious: bool) -> Array:
    """Return an array of the signature's dtype and of the shape that the entry says.

    Raises:
        RequestError: a key is missing or wrong, or the three do not fit each other or the spec.
    """
    for key in ("shape", "datatype", "data"):
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
    data = entry["data"]
    if not isinstance(data, list):
        raise RequestError(
            "wrong_type",
            f"the data of input {spec.name!r} is {describe(data)}",
            input=spec.name,
            expected="a list of values, flat or nested",
        )
    array = _shaped(to_array(data, spec, suspicious), shape, spec)
    check(array, spec, spec.shape)
    return array


def _elsewhere(entry: dict[str, Any], key: str) -> str:
    parameters = entry.get("parameters")
    if key == "data" and isinstance(parameters, dict):
        for extension in ("binary_data_size", "shared_memory_region"):
            if extension in parameters:
                return f', and "{extension}" is not supported'
    return ""


def _check_datatype(datatype: Any, spec: TensorSpec) -> None:
    expected = _DATATYPES[spec.dtype]
    if datatype == expected:
        return
    if datatype == "BYTES":
        message = f"input {spec.name!r} has datatype 'BYTES', and no model here takes strings"
    elif isinstance(datatype, str) and datatype in _DATATYPES.values():
        message = f"input {spec.name!r} has datatype {datatype!r}, and nothing is cast"
    elif isinstance(datatype, str):
        message = f"input {spec.name!r} has the unknown datatype {ascii(datatype)[:80]}"
    else:
        message = f"the datatype of input {spec.name!r} is {describe(datatype)}"
    raise RequestError("wrong_datatype", message, input=spec.name, expected=expected)


def _shape(value: Any, spec: TensorSpec) -> tuple[int, ...]:
    if isinstance(value, list):
        # Not isinstance: true is an int.
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


def _shaped(array: Array, shape: tuple[int, ...], spec: TensorSpec) -> Array:
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


def _envelope(document: dict[str, Any], signature: Signature, layers: Sequence[Layer]) -> Envelope:
    own_id = document.get("id")
    # What cannot be written as UTF-8 could not be given back.
    if own_id is not None and not (isinstance(own_id, str) and _is_text(own_id)):
        raise RequestError("wrong_type", f'"id" is {describe(own_id)}', expected="a string")
    _parameters(document, "the request")
    outputs = _outputs(document.get("outputs"), signature, layers)
    stats = [one.layers for one in outputs if not one.raw]
    raw = [one.layers for one in outputs if one.raw]
    wanted = Wanted(frozenset().union(*stats), frozenset().union(*raw))
    return Envelope(outputs, own_id, wanted if wanted != Wanted() else None)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parameters(owner: dict[str, Any], name: str) -> dict[str, Any]:
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


def _outputs(value: Any, signature: Signature, layers: Sequence[Layer]) -> tuple[Requested, ...]:
    usage = '{"outputs": [{"name": ...}]}'
    if value is not None and not isinstance(value, list):
        raise RequestError("wrong_type", f'"outputs" is {describe(value)}', expected=usage)
    if not value:
        return tuple(Requested(spec.name) for spec in signature.outputs)
    outputs = []
    owners: dict[str, str] = {}
    for name, entry in _by_name(value, "outputs", usage).items():
        one = _requested(name, entry, signature, layers)
        for layer in sorted(one.layers):
            other = owners.setdefault(layer, name)
            if other != name:
                raise RequestError(
                    "duplicate_name",
                    f"outputs {ascii(other)[:80]} and {ascii(name)[:80]} both hold {layer!r}",
                    expected="each layer once",
                )
        outputs.append(one)
    return tuple(outputs)


def _requested(
    name: str, entry: dict[str, Any], signature: Signature, layers: Sequence[Layer]
) -> Requested:
    names = [spec.name for spec in signature.outputs]
    parameters = _parameters(entry, f"output {ascii(name)[:80]}")
    if name in names:
        return Requested(name)
    if not name.startswith(PREFIX):
        raise RequestError(
            "unknown_output",
            f"the model has no output {ascii(name)[:80]}",
            expected=", ".join([*names, *([f"{PREFIX}LAYER"] if layers else [])]),
        )
    raw = parameters.get("raw", False)
    if not isinstance(raw, bool):
        raise RequestError(
            "wrong_type",
            f'"raw" of output {ascii(name)[:80]} is {describe(raw)}',
            expected="true or false",
        )
    return Requested(name, select([name.removeprefix(PREFIX)], layers, raw=raw), raw)
