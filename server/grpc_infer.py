"""`ModelInfer` as an HTTP request with binary tensors, and its answer back.

Tensors are copied, never read: the handler checks them, as it does those that came over HTTP.
"""

import json
import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from server.grpc_messages import MESSAGES

__all__ = ["JSON_LENGTH", "BadAnswer", "BadTensor", "HttpBody", "answer", "request"]

#: The header that says where a body's JSON ends.
JSON_LENGTH: Final = "Inference-Header-Content-Length"
# Where typed contents stand, and the element type that they have in memory.
_CONTENTS: Final = {
    "BOOL": ("bool_contents", "B"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}
# How a tensor is to be sent is between the handler and us.
_OURS: Final = ("binary_data", "binary_data_size", "binary_data_output")


class BadTensor(ValueError):
    """The contents of a request do not go together; the text says why."""


class BadAnswer(ValueError):
    """A body is no answer of the protocol."""


@dataclass(frozen=True)
class HttpBody:
    """A body of the protocol over HTTP: JSON, and the tensors' bytes behind it."""

    header: bytes
    tensors: bytes


def request(message: Any) -> HttpBody:
    """Turn a `ModelInferRequest` into a body.

    Raises:
        BadTensor: There are other contents than inputs, or a value that its datatype cannot hold.
    """
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise BadTensor(f"{len(message.inputs)} inputs, but {len(raw)} raw_input_contents")
    if not raw:
        raw = [_packed(tensor) for tensor in message.inputs]
    inputs = [_input(tensor, data) for tensor, data in zip(message.inputs, raw, strict=True)]
    document: dict[str, Any] = {"inputs": inputs}
    if message.id:
        document["id"] = message.id
    if message.outputs:
        document["outputs"] = [_requested(output) for output in message.outputs]
    document["parameters"] = {**_values(message.parameters), "binary_data_output": True}
    return HttpBody(json.dumps(document).encode(), b"".join(raw))


def answer(body: bytes, length: int | None) -> Any:
    """Turn a body into a `ModelInferResponse`.

    Args:
        body: JSON, and tensors behind it.
        length: Bytes of the JSON; None for all.

    Raises:
        BadAnswer: It is no answer of the protocol: the handler is somebody else's.
    """
    try:
        return _answer(json.loads(body[:length]), body, length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadAnswer("the model's handler does not answer in the protocol") from error


def _answer(document: Any, body: bytes, length: int | None) -> Any:
    message = MESSAGES["ModelInferResponse"](
        model_name=document["model_name"],
        model_version=document.get("model_version", ""),
        id=document.get("id", ""),
        parameters=_parameters(document.get("parameters", {})),
    )
    place = length or 0
    for output in document["outputs"]:
        parameters = output.get("parameters", {})
        size = parameters.get("binary_data_size")
        if size is None:
            data = _bytes(output["datatype"], output["data"])
        else:
            data = body[place : place + size]
            place += size
        message.outputs.add(
            name=output["name"],
            datatype=output["datatype"],
            shape=output["shape"],
            parameters=_parameters(parameters),
        )
        message.raw_output_contents.append(data)
    return message


def _input(tensor: Any, data: bytes) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": {**_values(tensor.parameters), "binary_data_size": len(data)},
    }


def _requested(output: Any) -> dict[str, Any]:
    parameters = _values(output.parameters)
    return {"name": output.name} | ({"parameters": parameters} if parameters else {})


def _packed(tensor: Any) -> bytes:
    if tensor.datatype not in _CONTENTS:
        raise BadTensor(f"input {tensor.name!r}: {tensor.datatype} is sent in raw_input_contents")
    return _bytes(tensor.datatype, getattr(tensor.contents, _CONTENTS[tensor.datatype][0]))


def _bytes(datatype: str, values: Iterable[Any]) -> bytes:
    try:
        packed = array(_CONTENTS[datatype][1], values)
    except (OverflowError, TypeError) as error:
        raise BadTensor(f"{datatype}: {error}") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in parameters.items():
        chosen = value.WhichOneof("parameter_choice")
        if chosen is not None and name not in _OURS:
            found[name] = getattr(value, chosen)
    return found


def _parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _parameter(value) for name, value in values.items() if name not in _OURS}


def _parameter(value: Any) -> Any:
    make = MESSAGES["InferParameter"]
    if isinstance(value, bool):
        return make(bool_param=value)
    if isinstance(value, int):
        return make(int64_param=value)
    if isinstance(value, float):
        return make(double_param=value)
    return make(string_param=value if isinstance(value, str) else json.dumps(value))
