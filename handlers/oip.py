"""The Open Inference Protocol (KServe v2, Triton): `POST /v2/models/NAME/infer`.

A request is JSON, or JSON and the raw tensors of some inputs behind it (Triton's binary tensor data
extension): the header Inference-Header-Content-Length then says where the JSON ends. `decode` reads
it into the same `Question` as any other form, so that it shares batches with them, and into an
`Envelope` that says how the answer is to look.

A requested output may be called `activations/LAYER`: statistics of what that layer put out, or,
with the parameter `raw`, the values themselves. LAYER may be a glob.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from formats.layers import Layer
from formats.signature import Signature
from handlers import oip_inputs
from handlers.datatypes import Buffer
from handlers.decode import Body, Question, too_deep
from handlers.errors import RequestError
from handlers.observe import Wanted, select
from handlers.oip_inputs import by_name, parameters_of
from handlers.values import describe

__all__ = ["LENGTH", "PREFIX", "Envelope", "Requested", "applies", "cut", "decode"]

LENGTH: Final = "Inference-Header-Content-Length"
"""The header that says how many bytes of a body are JSON."""

PREFIX: Final = "activations/"
"""What the name of a requested output begins with when it is a layer's."""

_LONGEST_NAME: Final = 1024
# A client that sends one of these would take our answer for something that it is not.
_NOT_SUPPORTED: Final = ("classification", "shared_memory_region")


@dataclass(frozen=True)
class Requested:
    """One output that a request asks for.

    Attributes:
        name: as it was written.
        layers: names of the layers that `activations/...` chose; empty for a model's output.
        raw: the layers' activations themselves rather than their statistics.
        binary: its values are to stand behind the JSON of the answer.
    """

    name: str
    layers: frozenset[str] = frozenset()
    raw: bool = False
    binary: bool = False


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


def cut(body: Buffer, length: str) -> tuple[bytes, memoryview]:
    """Divide a body into its JSON and what stands behind it.

    Args:
        body: whole.
        length: the value of the header.

    Raises:
        RequestError: it is no number of bytes, or the body has fewer.
    """
    text = length.strip()
    # Longer numbers are no sizes, and Python itself refuses to read much longer ones.
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise RequestError(
            "bad_header", f"{LENGTH} is {ascii(text)[:40]}", expected="a number of bytes"
        )
    size = int(text)
    if size > len(body):
        raise RequestError(
            "bad_header",
            f"{LENGTH} is {size}, and the body has {len(body)} bytes",
            expected="the number of bytes of the JSON at the start of the body",
        )
    view = memoryview(body)
    return bytes(view[:size]), view[size:]


def applies(body: Body) -> bool:
    """Tell whether a body is the protocol's: its "inputs" is a list of objects.

    No other form has objects there, and the first entry tells.
    """
    document = body.document
    if not isinstance(document, dict):
        return False
    inputs = document.get("inputs")
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict)


def decode(
    body: Body, signature: Signature, layers: Sequence[Layer], tail: memoryview | None = None
) -> tuple[Question, Envelope]:
    """Read a request of the protocol.

    Args:
        body: one that `applies`.
        signature: of the model.
        layers: those that hooks are compiled into.
        tail: what stands behind the JSON, if the request said where that ends.

    Returns:
        What it asks of the model, and how the answer is to look.

    Raises:
        RequestError: naming the input or output and what was expected.
    """
    try:
        question = _question(body, tail, signature)
        return question, _envelope(body.document, signature, layers)
    except RequestError as error:
        error.oip = True
        raise


def _question(body: Body, tail: memoryview | None, signature: Signature) -> Question:
    try:
        return oip_inputs.read(body, tail, signature)
    except RecursionError:
        raise too_deep(signature) from None


def _envelope(document: dict[str, Any], signature: Signature, layers: Sequence[Layer]) -> Envelope:
    own_id = document.get("id")
    # What cannot be written as UTF-8 could not be given back.
    if own_id is not None and not (isinstance(own_id, str) and _is_text(own_id)):
        raise RequestError("wrong_type", f'"id" is {describe(own_id)}', expected="a string")
    parameters = parameters_of(document, "the request")
    binary = _flag(parameters, "binary_data_output", "the request", default=False)
    outputs = _outputs(document.get("outputs"), signature, layers, binary)
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


def _outputs(
    value: Any, signature: Signature, layers: Sequence[Layer], binary: bool
) -> tuple[Requested, ...]:
    usage = '{"outputs": [{"name": ...}]}'
    if value is not None and not isinstance(value, list):
        raise RequestError("wrong_type", f'"outputs" is {describe(value)}', expected=usage)
    if not value:
        return tuple(Requested(spec.name, binary=binary) for spec in signature.outputs)
    outputs = []
    owners: dict[str, str] = {}
    for name, entry in by_name(value, "outputs", usage).items():
        one = _requested(name, entry, signature, layers, binary)
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
    name: str, entry: dict[str, Any], signature: Signature, layers: Sequence[Layer], binary: bool
) -> Requested:
    names = [spec.name for spec in signature.outputs]
    shown = f"output {ascii(name)[:80]}"
    parameters = parameters_of(entry, shown)
    for unsupported in _NOT_SUPPORTED:
        if unsupported in parameters:
            message = f'"{unsupported}" of {shown} is not supported'
            raise RequestError("not_supported", message, expected="the output's own values")
    binary = _flag(parameters, "binary_data", shown, default=binary)
    if name in names:
        return Requested(name, binary=binary)
    # A glob is compiled, so it must not be as long as a body may be.
    if not name.startswith(PREFIX) or len(name) > _LONGEST_NAME:
        raise RequestError(
            "unknown_output",
            f"the model has no output {ascii(name)[:80]}",
            expected=", ".join([*names, *([f"{PREFIX}LAYER"] if layers else [])]),
        )
    raw = _flag(parameters, "raw", shown, default=False)
    chosen = select([name.removeprefix(PREFIX)], layers, raw=raw)
    return Requested(name, chosen, raw, binary)


def _flag(parameters: Mapping[str, Any], key: str, owner: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise RequestError(
            "wrong_type", f'"{key}" of {owner} is {describe(value)}', expected="true or false"
        )
    return value
