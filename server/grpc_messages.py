"""The messages of the Open Inference Protocol over gRPC, by field and number.

The protocol's package is `inference`, its service `GRPCInferenceService`. The messages are made at
run time, so that no generated code has to be kept in step with protobuf.
"""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["MESSAGES", "SERVICE"]

SERVICE: Final = "inference.GRPCInferenceService"
_PACKAGE: Final = "inference"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}
# Where a parameter's value stands.
_CHOICE: Final = "parameter_choice"
_NAMED: Final = {"name": "string 1", "version": "string 2"}
_TENSOR: Final = {"name": "string 1", "datatype": "string 2", "shape": "repeated int64 3"}
_LAYOUT: Final[Mapping[str, Mapping[str, str]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": "bool 1"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": "bool 1"},
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": {"ready": "bool 1"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_NAMED, "extensions": "repeated string 3"},
    "ModelMetadataRequest": _NAMED,
    "TensorMetadata": _TENSOR,
    "ModelMetadataResponse": {
        "name": "string 1",
        "versions": "repeated string 2",
        "platform": "string 3",
        "inputs": "repeated TensorMetadata 4",
        "outputs": "repeated TensorMetadata 5",
    },
    "InferParameter": {
        "bool_param": "bool 1",
        "int64_param": "int64 2",
        "string_param": "string 3",
        "double_param": "double 4",
        "uint64_param": "uint64 5",
    },
    "InferTensorContents": {
        "bool_contents": "repeated bool 1",
        "int_contents": "repeated int32 2",
        "int64_contents": "repeated int64 3",
        "uint_contents": "repeated uint32 4",
        "uint64_contents": "repeated uint64 5",
        "fp32_contents": "repeated float 6",
        "fp64_contents": "repeated double 7",
        "bytes_contents": "repeated bytes 8",
    },
    "InferTensor": {**_TENSOR, "parameters": "map 4", "contents": "InferTensorContents 5"},
    "InferRequestedOutputTensor": {"name": "string 1", "parameters": "map 2"},
    "ModelInferRequest": {
        "model_name": "string 1",
        "model_version": "string 2",
        "id": "string 3",
        "parameters": "map 4",
        "inputs": "repeated InferTensor 5",
        "outputs": "repeated InferRequestedOutputTensor 6",
        "raw_input_contents": "repeated bytes 7",
    },
    "ModelInferResponse": {
        "model_name": "string 1",
        "model_version": "string 2",
        "id": "string 3",
        "parameters": "map 4",
        "outputs": "repeated InferTensor 5",
        "raw_output_contents": "repeated bytes 6",
    },
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="inference", package=_PACKAGE, syntax="proto3")
    for name, fields in _LAYOUT.items():
        message = file.message_type.add(name=name)
        if name == "InferParameter":
            message.oneof_decl.add(name=_CHOICE)
        for field, layout in fields.items():
            _add(message, field, layout, choice=name == "InferParameter")
    return file


def _add(message: Any, name: str, layout: str, *, choice: bool) -> None:
    *repeated, kind, number = layout.split()
    if kind == "map":
        kind, repeated = _entry(message), ["repeated"]
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    if choice:
        field.oneof_index = 0


def _entry(message: Any) -> str:
    """Add what a `map<string, InferParameter> parameters` is made of."""
    entry = message.nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    _add(entry, "key", "string 1", choice=False)
    _add(entry, "value", "InferParameter 2", choice=False)
    return f"{message.name}.ParametersEntry"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    found = (pool.FindMessageTypeByName(f"{_PACKAGE}.{name}") for name in _LAYOUT)
    return {one.name: message_factory.GetMessageClass(one) for one in found}


#: Each message's class by its name.
MESSAGES: Final = _classes()
