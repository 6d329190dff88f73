"""The binary tensor extension of the Open Inference Protocol, against NumPy and eager PyTorch."""

import json
import zipfile

import numpy as np
import pytest
import torch

from formats import Signature, TensorSpec
from formats.datatypes import DATATYPES
from handlers import datatypes, oip
from handlers.asked import read
from handlers.coding import MAX_REQUEST_BYTES
from handlers.errors import RequestError
from handlers.message import Request
from handlers.model import Model
from handlers.service import Service
from tests.networks import ManyTypes, ResidualNet
from tests.unit.test_activations import Inside

LENGTH = "inference-header-content-length"
NUMPY = {
    "bool": np.array([[True, False], [False, True]]),
    "uint8": np.array([[0, 255], [1, 2]]),
    "uint16": np.array([[0, 2**16 - 1], [1, 2]]),
    "uint32": np.array([[0, 2**32 - 1], [1, 2]]),
    "uint64": np.array([[0, 2**64 - 1], [1, 2]], np.uint64),
    "int8": np.array([[-128, 127], [1, 2]]),
    "int16": np.array([[-(2**15), 2**15 - 1], [1, 2]]),
    "int32": np.array([[-(2**31), 2**31 - 1], [1, 2]]),
    "int64": np.array([[-(2**63), 2**63 - 1], [1, 2]]),
    "float16": np.array([[0.1, -65504], [np.nan, 2]]),
    "float32": np.array([[0.1, -3e38], [np.inf, 1e-45]]),
    "float64": np.array([[0.1, -1e308], [np.nan, 5e-324]]),
}


def signature(*inputs: TensorSpec, row_axis: bool = True) -> Signature:
    outputs = (TensorSpec("y", "float32", (-1, 3)), TensorSpec("z", "int64", (-1,)))
    return Signature("m", "2.1", "", inputs, outputs, row_axis)


ONE = signature(TensorSpec("x", "float32", (-1, 2)))
TWO = signature(TensorSpec("a", "float32", (-1, 2)), TensorSpec("b", "int64", (-1,), 0, 9))


def entry(name, datatype, shape, size, **more):
    parameters = {"binary_data_size": size, **more}
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": parameters}


def binary(document, *parts, length=None, headers=None):
    """Build a request: a JSON document and raw tensors behind it."""
    start = json.dumps(document).encode()
    told = str(len(start)) if length is None else length
    return Request(b"".join([start, *parts]), {LENGTH: told, **(headers or {})})


def asked(request, model=ONE):
    return read(request, model, (), MAX_REQUEST_BYTES)


def refused(request, model=ONE) -> RequestError:
    with pytest.raises(RequestError) as caught:
        asked(request, model)
    assert caught.value.expected
    assert json.dumps(caught.value.to_json())
    return caught.value


def parts_of(response):
    """Return the JSON of an answer and its tensors by name, as Triton's clients read them."""
    assert response.status == 200, response.body
    length = int(response.headers[oip.LENGTH])
    body = json.loads(response.body[:length])
    start, tensors = length, {}
    numpy_names = {name: dtype for dtype, name in DATATYPES.items()}
    for output in body["outputs"]:
        dtype = numpy_names[output["datatype"]]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            tensors[output["name"]] = np.array(output["data"], dtype).reshape(output["shape"])
            continue
        assert "data" not in output
        raw = response.body[start : start + size]
        kind = "<u2" if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")
        tensors[output["name"]] = np.frombuffer(raw, kind).reshape(output["shape"])
        start += size
    assert start == len(response.body)
    return body, tensors


# Reading.


@pytest.mark.parametrize("dtype", NUMPY)
def test_every_datatype_bit_for_bit(dtype):
    values = NUMPY[dtype].astype(dtype)
    model = signature(TensorSpec("x", dtype, (-1, 2)))
    raw = values.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    request = binary({"inputs": [entry("x", DATATYPES[dtype], [2, 2], len(raw))]}, raw)
    [array] = asked(request, model).question.arrays
    assert array.dtype == np.dtype(dtype)
    assert array.tobytes() == values.tobytes()


def test_bfloat16_is_two_bytes():
    values = torch.tensor([[1.5, -3e38], [float("nan"), 2**-133]], dtype=torch.bfloat16)
    raw = values.view(torch.uint16).numpy().tobytes()
    model = signature(TensorSpec("x", "bfloat16", (-1, 2)))
    request = binary({"inputs": [entry("x", "BF16", [2, 2], 8)]}, raw)
    [array] = asked(request, model).question.arrays
    np.testing.assert_array_equal(array, values.float().numpy())
    assert datatypes.to_raw(array, "bfloat16").tobytes() == raw


def test_the_tensor_lies_where_it_was_received():
    raw = np.ones((2, 2), np.float32).tobytes()
    request = binary({"inputs": [entry("x", "FP32", [2, 2], 16)]}, raw)
    body = bytearray(request.body)
    [array] = asked(Request(body, request.headers)).question.arrays
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


def test_raw_and_json_inputs_in_any_order():
    a, b = np.array([[1, 2], [3, 4]], "<f4"), np.array([5, 6], "<i8")
    as_json = {"name": "b", "shape": [2], "datatype": "INT64", "data": [5, 6]}
    first = binary({"inputs": [as_json, entry("a", "FP32", [2, 2], 16)]}, a.tobytes())
    second = binary(
        {"inputs": [entry("b", "INT64", [2], 16), entry("a", "FP32", [2, 2], 16)]},
        b.tobytes(),
        a.tobytes(),
    )
    for request in (first, second):
        found = asked(request, TWO).question
        np.testing.assert_array_equal(found.arrays[0], a)
        np.testing.assert_array_equal(found.arrays[1], b)
        assert found.rows == 2


def test_json_alone_may_have_the_header_too():
    document = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    for headers in ({}, {"content-type": "application/octet-stream"}):
        request = binary(document, headers=headers)
        assert asked(request).question.arrays[0].tolist() == [[1, 2]]


X = np.ones((1, 2), np.float32).tobytes()
GOOD = {"inputs": [entry("x", "FP32", [1, 2], 8)]}


@pytest.mark.parametrize(
    ("length", "words"),
    [
        ("", "is ''"),
        ("-1", "'-1'"),
        ("1e3", "'1e3'"),
        ("0x10", "'0x10'"),
        ("\u0661", "'\\u0661'"),
        ("9" * 5000, "'999"),
        ("999999", "is 999999, and the body has"),
        ("12\r\nevil", "'12\\r\\nevil'"),
    ],
)
def test_a_length_that_is_none(length, words):
    error = refused(binary(GOOD, X, length=length))
    assert (error.code, error.status) == ("bad_header", 400)
    assert words in error.message


@pytest.mark.parametrize(("length", "code"), [("0", "empty_body"), ("3", "not_json")])
def test_a_length_that_cuts_the_json(length, code):
    assert refused(binary(GOOD, X, length=length)).code == code


def test_a_length_that_reaches_into_the_tensors():
    assert refused(binary(GOOD, X, length=str(len(json.dumps(GOOD)) + 1))).code == "not_json"


def test_json_that_is_not_the_protocols():
    error = refused(binary([1, 2], X))
    assert error.code == "wrong_type"
    assert "not the protocol's" in error.message


@pytest.mark.parametrize(
    ("document", "parts", "code", "words"),
    [
        (GOOD, [X, b"\0"], "wrong_size", "9 bytes stand behind the JSON, and the inputs claim 8"),
        (GOOD, [X[:-1]], "wrong_size", "7 bytes stand behind"),
        (GOOD, [], "wrong_size", "0 bytes stand behind"),
        ({"inputs": [entry("x", "FP32", [1, 2], 7)]}, [X[:7]], "wrong_size", "datatype make 8"),
        ({"inputs": [entry("x", "FP32", [2, 2], 8)]}, [X], "wrong_size", "datatype make 16"),
        ({"inputs": [entry("x", "FP32", [0, 2], 0)]}, [], "empty_input", "is empty"),
        ({"inputs": [entry("x", "FP32", [2**62, 2], 8)]}, [X], "wrong_size", "make 3689"),
        ({"inputs": [entry("x", "FP32", [2**64, 2], 8)]}, [X], "wrong_shape", "holds 1.8446"),
        ({"inputs": [entry("x", "FP32", [-1, 2], 8)]}, [X], "wrong_shape", "holds -1"),
        ({"inputs": [entry("x", "FP32", [2], 8)]}, [X], "wrong_shape", "has shape [2]"),
        ({"inputs": [entry("x", "FP32", [1, 2], -8)]}, [X], "wrong_type", "is -8"),
        ({"inputs": [entry("x", "FP32", [1, 2], True)]}, [X], "wrong_type", "is true"),
        ({"inputs": [entry("x", "FP32", [1, 2], "8")]}, [X], "wrong_type", "the string '8'"),
        ({"inputs": [entry("x", "FP32", [1, 2], 8.0)]}, [X], "wrong_type", "is 8.0"),
        ({"inputs": [entry("x", "FP32", [1, 2], 2**70)]}, [X], "wrong_type", "binary_data_size"),
        ({"inputs": [entry("x", "FP32", [1, 2], None)]}, [X], "wrong_type", "is null"),
        ({"inputs": [entry("x", "FP64", [1, 1], 8)]}, [X], "wrong_datatype", "nothing is cast"),
        ({"inputs": [entry("x", "BYTES", [1, 2], 8)]}, [X], "wrong_datatype", "takes strings"),
        (
            {"inputs": [entry("x", "FP32", [1, 2], 8) | {"data": [1, 2]}]},
            [X],
            "wrong_size",
            'both "data" and a binary_data_size',
        ),
        ({"inputs": [GOOD["inputs"][0]] * 2}, [X, X], "duplicate_name", "twice"),
        ({"inputs": [entry("w", "FP32", [1, 2], 8)]}, [X], "missing_input", "'x' is missing"),
        ({"inputs": [GOOD["inputs"][0] | {"parameters": 3}]}, [X], "wrong_type", "is 3"),
        (
            {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]},
            [X],
            "wrong_size",
            "the inputs claim 0",
        ),
        (GOOD | {"parameters": {"binary_data_output": 1}}, [X], "wrong_type", "the request is 1"),
        (
            GOOD | {"outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
            [X],
            "wrong_type",
            "\"binary_data\" of output 'y' is the string 'yes'",
        ),
        (
            GOOD | {"outputs": [{"name": "y", "parameters": {"classification": 3}}]},
            [X],
            "not_supported",
            "classification",
        ),
    ],
)
def test_what_does_not_fit_is_named(document, parts, code, words):
    error = refused(binary(document, *parts))
    assert (error.code, error.status) == (code, 400)
    assert words in error.message


def test_a_bool_is_zero_or_one():
    model = signature(TensorSpec("x", "bool", (-1,)))
    error = refused(binary({"inputs": [entry("x", "BOOL", [3], 3)]}, b"\0\1\2"), model)
    assert error.code == "wrong_type"
    assert "neither 0 nor 1" in error.message


@pytest.mark.parametrize("value", [10, -1])
def test_bounds_hold_for_raw_values(value):
    parts = [np.ones((1, 2), "<f4").tobytes(), np.array([value], "<i8").tobytes()]
    inputs = [entry("a", "FP32", [1, 2], 8), entry("b", "INT64", [1], 8)]
    error = refused(binary({"inputs": inputs}, *parts), TWO)
    assert (error.code, error.input) == ("out_of_range", "b")


def test_nan_is_outside_every_bound():
    model = signature(TensorSpec("x", "float32", (-1, 2), 0, 1))
    raw = np.array([[0.5, np.nan]], "<f4").tobytes()
    error = refused(binary(GOOD, raw), model)
    assert error.code == "out_of_range"
    assert "at [0][1] is nan" in error.message


def test_unknown_parameters_are_tolerated():
    document = GOOD | {"parameters": {"sequence_id": 3, "mine": "x"}, "more": [1]}
    document["inputs"] = [entry("x", "FP32", [1, 2], 8, other=True)]
    assert asked(binary(document, X)).question.rows == 1


# Answers.


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    return Inside(ResidualNet, tmp_path_factory.mktemp("residual"))


def images(rows, **more):
    x = torch.randn(rows, 1, 6, 6)
    raw = x.numpy().astype("<f4").tobytes()
    return x, binary({"inputs": [entry("x", "FP32", [rows, 1, 6, 6], len(raw))], **more}, raw)


def test_the_same_numbers_in_binary_and_in_json(residual):
    x, request = images(2, id="mine", parameters={"binary_data_output": True})
    as_json = Request(json.dumps({"inputs": x.tolist()}).encode())
    [first] = residual.service.handle([request])
    [second] = residual.service.handle([as_json])
    body, tensors = parts_of(first)
    assert first.headers["content-type"] == "application/octet-stream"
    assert (body["model_name"], body["model_version"]) == ("ResidualNet", "1.0")
    assert body["id"] == "mine"
    wanted = np.array(json.loads(second.body)["outputs"]["output"], np.float32)
    assert tensors["output"].tobytes() == wanted.tobytes()


def test_each_output_says_how_it_is_sent(residual):
    outputs = [
        {"name": "activations/head"},
        {"name": "output", "parameters": {"binary_data": False}},
        {"name": "activations/blocks.0.r*", "parameters": {"raw": True}},
    ]
    x, request = images(2, outputs=outputs, parameters={"binary_data_output": True})
    [response] = residual.service.handle([request])
    body, tensors = parts_of(response)
    wanted = residual.eager(x)
    assert tensors["activations/head"].shape == (2, 7)
    assert "data" in body["outputs"][1]
    assert body["outputs"][0]["parameters"].keys() == {"columns", "binary_data_size"}
    assert len(tensors) == 2 + len([key for key in wanted if key.startswith("blocks.0.r")])
    for name, array in list(tensors.items())[2:]:
        key = name.removeprefix("activations/")
        np.testing.assert_allclose(array, wanted[key], rtol=1e-5, atol=1e-5)


def test_layers_of_other_datatypes_are_raw_too(tmp_path):
    served = Inside(ManyTypes, tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 6)).astype("<f4")
    outputs = [{"name": "activations/parts", "parameters": {"raw": True, "binary_data": True}}]
    request = binary(
        {"inputs": [entry("x", "FP32", [2, 6], x.nbytes)], "outputs": outputs}, x.tobytes()
    )
    body, tensors = parts_of(served.service.handle([request])[0])
    wanted = served.eager(torch.from_numpy(x))
    assert [one["datatype"] for one in body["outputs"]] == ["FP32", "FP16", "BOOL", "INT64"]
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, wanted[name.removeprefix("activations/")])


def test_json_is_the_default_answer(residual):
    _, request = images(1)
    [response] = residual.service.handle([request])
    assert response.headers["content-type"] == "application/json"
    assert oip.LENGTH not in response.headers
    assert len(json.loads(response.body)["outputs"][0]["data"]) == 3


def test_the_header_of_activations_stands_in_the_json(residual):
    _, request = images(1, parameters={"binary_data_output": True})
    headers = dict(request.headers) | {"x-activations": "stats; layers=head"}
    [response] = residual.service.handle([Request(request.body, headers)])
    body, _ = parts_of(response)
    assert list(body["activations"]["layers"]) == ["head"]


def test_bfloat16_outputs_are_two_bytes(exported, tmp_path):
    with zipfile.ZipFile(exported("half").archive) as archive:
        archive.extractall(tmp_path)
    service = Service(Model(tmp_path, torch.device("cpu")))
    x = torch.tensor([[1, 2, 3], [-1, 0.5, 4]], dtype=torch.bfloat16)
    flag = np.array([True, False])
    specs = service._model.signature.inputs
    shapes = {"x": ([2, 3], "BF16", x.view(torch.uint16).numpy()), "flag": ([2], "BOOL", flag)}
    inputs = [
        entry(one.name, shapes[one.name][1], shapes[one.name][0], shapes[one.name][2].nbytes)
        for one in specs
    ]
    parts = [shapes[one.name][2].tobytes() for one in specs]
    request = binary({"inputs": inputs, "parameters": {"binary_data_output": True}}, *parts)
    body, tensors = parts_of(service.handle([request])[0])
    plain = json.dumps({"x": x.float().tolist(), "flag": flag.tolist()}).encode()
    wanted = json.loads(service.handle([Request(plain)])[0].body)["outputs"]
    for output in body["outputs"]:
        assert output["datatype"] == "BF16"
        found = torch.from_numpy(tensors[output["name"]].copy()).view(torch.bfloat16)
        assert found.float().tolist() == wanted[output["name"]]
