"""Tensors between gRPC and HTTP, byte by byte."""

import json

import numpy as np
import pytest

from server.grpc_infer import BadAnswer, BadTensor, answer, request
from server.grpc_messages import MESSAGES

CONTENTS = [
    ("BOOL", "bool_contents", [True, False], np.bool_),
    ("INT8", "int_contents", [-128, 127], np.int8),
    ("INT16", "int_contents", [-1, 2], np.int16),
    ("INT32", "int_contents", [-1, 2], np.int32),
    ("INT64", "int64_contents", [-(2**62), 2], np.int64),
    ("UINT8", "uint_contents", [0, 255], np.uint8),
    ("UINT16", "uint_contents", [0, 65535], np.uint16),
    ("UINT32", "uint_contents", [0, 2**32 - 1], np.uint32),
    ("UINT64", "uint64_contents", [0, 2**64 - 1], np.uint64),
    ("FP32", "fp32_contents", [0.5, float("nan")], np.float32),
    ("FP64", "fp64_contents", [0.1, float("inf")], np.float64),
]


def asked(datatype="FP32", **contents):
    message = MESSAGES["ModelInferRequest"](model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[2])
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message


@pytest.mark.parametrize(("datatype", "field", "values", "dtype"), CONTENTS)
def test_typed_contents_become_bytes(datatype, field, values, dtype):
    body = request(asked(datatype, **{field: values}))
    assert body.tensors == np.array(values, dtype).tobytes()
    [tensor] = json.loads(body.header)["inputs"]
    assert tensor["parameters"] == {"binary_data_size": len(body.tensors)}


def test_raw_contents_are_passed_on():
    message = asked("BF16")
    message.raw_input_contents.append(b"\x01\x02\x03\x04")
    message.id = "mine"
    message.parameters["priority"].int64_param = 3
    message.parameters["binary_data_output"].bool_param = False
    message.outputs.add(name="y").parameters["raw"].bool_param = True
    body = request(message)
    assert body.tensors == b"\x01\x02\x03\x04"
    document = json.loads(body.header)
    assert document["id"] == "mine"
    assert document["parameters"] == {"priority": 3, "binary_data_output": True}
    assert document["outputs"] == [{"name": "y", "parameters": {"raw": True}}]


@pytest.mark.parametrize(
    "message",
    [
        asked("INT8", int_contents=[128]),
        asked("BF16"),
        asked("FP16", fp32_contents=[1.0]),
        asked("BYTES", bytes_contents=[b"a"]),
        MESSAGES["ModelInferRequest"](raw_input_contents=[b"a"]),
    ],
)
def test_contents_that_cannot_be_are_refused(message):
    with pytest.raises(BadTensor):
        request(message)


def test_an_answer_has_all_its_tensors_raw():
    outputs = [
        {"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
        {"name": "b", "datatype": "INT64", "shape": [1], "data": [7]},
        {"name": "c", "datatype": "BOOL", "shape": [1], "parameters": {"binary_data_size": 1}},
    ]
    document = {"model_name": "m", "id": "i", "parameters": {"dead": ["l"]}, "outputs": outputs}
    header = json.dumps(document).encode()
    found = answer(header + b"12345678" + b"\x01", len(header))
    assert list(found.raw_output_contents) == [b"12345678", np.int64(7).tobytes(), b"\x01"]
    assert (found.model_name, found.id) == ("m", "i")
    assert found.parameters["dead"].string_param == '["l"]'
    assert not found.outputs[0].parameters


@pytest.mark.parametrize(
    "body", [b"hello", b"[]", b"{}", b'{"model_name": "m"}', b'{"outputs": 1}']
)
def test_an_answer_of_somebody_elses_handler_is_told_apart(body):
    with pytest.raises(BadAnswer):
        answer(body, None)
