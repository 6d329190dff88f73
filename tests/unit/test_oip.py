"""The Open Inference Protocol: the answers of eager PyTorch, and errors that say what is wrong."""

import json
import zipfile

import numpy as np
import pytest
import torch

from formats import Signature, TensorSpec
from formats.layers import Layer
from handlers import jsontext, observe, oip
from handlers.decode import parse
from handlers.errors import RequestError
from handlers.model import Model
from handlers.recorder import Recorder
from handlers.service import Request, Service
from tests.networks import Branching, ManyTypes, ResidualNet, Transformer
from tests.unit.test_activations import Inside

CPU = torch.device("cpu")
COLUMNS = ["elements", "mean", "std", "min", "max", "zero_fraction", "non_finite"]
NUMPY = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "float32",
    "FP32": "float32",
    "FP64": "float64",
}


def signature(*inputs: TensorSpec, row_axis: bool = True) -> Signature:
    outputs = (TensorSpec("y", "float32", (-1, 3)), TensorSpec("z", "int64", (-1,)))
    return Signature("m", "2.1", "", inputs, outputs, row_axis)


ONE = signature(TensorSpec("x", "float32", (-1, 2)))
TWO = signature(TensorSpec("a", "float32", (-1, 2, -1)), TensorSpec("b", "int64", (-1,), 0, 9))
LAYERS = (
    Layer("fc", "Linear", False, (0,), ("",)),
    Layer("relu", "ReLU", True, (0,), ("",)),
    Layer("tanh", "Tanh", True, (0,), ("",)),
)


def tensor(name, datatype, values, **more):
    values = np.asarray(values)
    return {
        "name": name,
        "shape": list(values.shape),
        "datatype": datatype,
        "data": values.ravel().tolist(),
        **more,
    }


def read(document, model=ONE, layers=LAYERS):
    body = parse(json.dumps(document).encode(), model)
    assert oip.applies(body)
    return oip.decode(body, model, layers)


def refused(document, model=ONE, layers=LAYERS) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(document, model, layers)
    assert caught.value.status == 400
    assert caught.value.expected
    return caught.value


@pytest.fixture(params=["orjson", "standard library"])
def json_library(request, monkeypatch):
    if request.param == "standard library":
        monkeypatch.setattr(jsontext, "orjson", None)


# Reading.


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('{"inputs": [{"name": "x"}]}', True),
        ('{"inputs": [{}]}', True),
        ('{"inputs": []}', False),
        ('{"inputs": [1, 2]}', False),
        ('{"inputs": [[1, 2]]}', False),
        ('{"inputs": {"x": [1, 2]}}', False),
        ('{"instances": [{"x": [1, 2]}]}', False),
        ('[{"name": "x"}]', False),
        ("3", False),
    ],
)
def test_the_body_tells_the_form(body, wanted):
    assert oip.applies(parse(body.encode(), ONE)) is wanted


@pytest.mark.parametrize("data", [[1, 2, 3, 4.5], [[1, 2], [3, 4.5]]])
def test_data_may_be_flat_or_nested(data, json_library):
    entry = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": data}
    question, envelope = read({"inputs": [entry]})
    assert question.arrays[0].tolist() == [[1, 2], [3, 4.5]]
    assert question.arrays[0].dtype == np.float32
    assert (question.rows, question.single) == (2, False)
    assert [one.name for one in envelope.outputs] == ["y", "z"]
    assert (envelope.id, envelope.wanted) == (None, None)


@pytest.mark.parametrize(
    ("dtype", "datatype", "values"),
    [
        ("bool", "BOOL", [[True, False]]),
        ("uint8", "UINT8", [[0, 255]]),
        ("int8", "INT8", [[-128, 127]]),
        ("int16", "INT16", [[-32768, 32767]]),
        ("int32", "INT32", [[-(2**31), 2**31 - 1]]),
        ("int64", "INT64", [[-(2**63) + 1, 2**63 - 1]]),
        ("float16", "FP16", [[0.5, 65504]]),
        ("bfloat16", "BF16", [[0.5, 2]]),
        ("float32", "FP32", [[0.1, 1]]),
        ("float64", "FP64", [[0.1, 1e300]]),
    ],
)
def test_every_datatype(dtype, datatype, values, json_library):
    model = signature(TensorSpec("x", dtype, (-1, 2)))
    entry = {"name": "x", "shape": [1, 2], "datatype": datatype, "data": values[0]}
    [array] = read({"inputs": [entry]}, model)[0].arrays
    assert array.dtype == NUMPY[datatype]
    np.testing.assert_array_equal(array, np.array(values, NUMPY[datatype]))


def test_inputs_in_any_order_and_a_scalar():
    a, b = tensor("a", "FP32", np.ones((2, 2, 5))), tensor("b", "INT64", [3, 4])
    question, _ = read({"inputs": [b, a]}, TWO)
    assert [array.shape for array in question.arrays] == [(2, 2, 5), (2,)]
    scalar = signature(TensorSpec("s", "float32", ()), row_axis=False)
    question, _ = read({"inputs": [tensor("s", "FP32", 3.0)]}, scalar)
    assert question.arrays[0].shape == ()
    assert question.rows == 1


def test_the_row_axis_is_always_there():
    rows = signature(TensorSpec("x", "float32", (-1, 8)))
    error = refused({"inputs": [tensor("x", "FP32", np.ones(8))]}, rows)
    assert (error.code, error.input) == ("wrong_shape", "x")
    assert "[8]" in error.message
    assert "[-1, 8] (-1 is any size)" in error.expected


X = tensor("x", "FP32", [[1, 2]])


def without(key):
    return {name: value for name, value in X.items() if name != key}


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        (without("name"), "missing_field", 'entry 0 of "inputs" has no "name"'),
        (without("shape"), "missing_field", "input 'x' has no \"shape\""),
        (without("datatype"), "missing_field", "input 'x' has no \"datatype\""),
        (without("data"), "missing_field", "input 'x' has no \"data\""),
        (
            without("data") | {"parameters": {"binary_data_size": 8}},
            "missing_header",
            "does not say where its JSON ends",
        ),
        (
            without("data") | {"parameters": {"shared_memory_region": "r"}},
            "missing_field",
            '"shared_memory_region" is not supported',
        ),
        (X | {"name": 3}, "wrong_type", 'the name of entry 0 of "inputs" is 3'),
        (X | {"name": "w"}, "missing_input", "input 'x' is missing"),
        (X | {"datatype": "FP64"}, "wrong_datatype", "'FP64', and nothing is cast"),
        (X | {"datatype": "UINT32"}, "wrong_datatype", "'UINT32', and nothing is cast"),
        (X | {"datatype": "BYTES"}, "wrong_datatype", "no model here takes strings"),
        (X | {"datatype": "float32"}, "wrong_datatype", "unknown datatype 'float32'"),
        (X | {"datatype": None}, "wrong_datatype", "the datatype of input 'x' is null"),
        (X | {"shape": 2}, "wrong_shape", "the shape of input 'x' is 2"),
        (X | {"shape": [1, 2.0]}, "wrong_shape", "holds 2.0"),
        (X | {"shape": [True, 2]}, "wrong_shape", "holds true"),
        (X | {"shape": [-1, 2]}, "wrong_shape", "holds -1"),
        (X | {"shape": [1, 3]}, "wrong_shape", "has shape [1, 3]"),
        (X | {"shape": [1, 2, 1]}, "wrong_shape", "has shape [1, 2, 1]"),
        (X | {"shape": [2, 2]}, "wrong_shape", "shape [2, 2], but its data has 2 values"),
        (X | {"shape": [0, 2]}, "wrong_shape", "shape [0, 2], but its data has 2 values"),
        (X | {"shape": [0, 2], "data": []}, "empty_input", "input 'x' is empty"),
        (
            X | {"shape": [1, 2], "data": [[1], [2]]},
            "wrong_shape",
            "data has values nested as [2, 1]",
        ),
        (X | {"shape": [2, 2], "data": [[1, 2], [3]]}, "ragged", "ragged"),
        (X | {"data": 3}, "wrong_type", "the data of input 'x' is 3"),
        (X | {"data": [1, "2"]}, "wrong_type", "input 'x' at [1] is the string '2'"),
        (X | {"data": [[1, True]]}, "wrong_type", "input 'x' at [0][1] is true"),
        (X | {"data": [1, None]}, "wrong_type", "is null"),
        (X | {"data": [1, 1e39]}, "out_of_range", "does not fit float32"),
    ],
)
def test_an_input_that_is_wrong_is_named(entry, code, words, json_library):
    error = refused({"inputs": [entry]})
    assert error.code == code
    assert words in error.message
    if "name" in entry and entry["name"] == "x":
        assert error.input == "x"


@pytest.mark.parametrize(
    ("spec", "entry", "code", "words"),
    [
        (("int64", (-1,)), {"datatype": "INT64", "data": [1.0]}, "wrong_type", "whole number"),
        (("uint8", (-1,)), {"datatype": "UINT8", "data": [256]}, "out_of_range", "256"),
        (("int8", (-1,)), {"datatype": "INT8", "data": [-129]}, "out_of_range", "-129"),
        (("int64", (-1,)), {"datatype": "INT64", "data": [True]}, "wrong_type", "is true"),
        (("bool", (-1,)), {"datatype": "BOOL", "data": [1]}, "wrong_type", "true or false"),
        (("int64", (-1,), 0, 9), {"datatype": "INT64", "data": [10]}, "out_of_range", "10"),
    ],
)
def test_values_must_fit_the_datatype_and_the_bounds(spec, entry, code, words):
    entry = {"name": "x", "shape": [1], **entry}
    error = refused({"inputs": [entry]}, signature(TensorSpec("x", *spec)))
    assert (error.code, error.input) == (code, "x")
    assert words in error.message


A, B = tensor("a", "FP32", np.ones((2, 2, 1))), tensor("b", "INT64", [3, 4])


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ([A], "missing_input", "'b' is missing"),
        ([A, B, tensor("c", "FP32", [1])], "unknown_input", "no input 'c'"),
        ([A, B, A], "duplicate_name", "'a' is twice"),
        ([A, 3], "wrong_type", 'entry 1 of "inputs" is 3'),
        ([A, tensor("b", "INT64", [3])], "wrong_shape", "different numbers of rows (a: 2, b: 1)"),
    ],
)
def test_inputs_that_do_not_fit_the_model(inputs, code, words):
    error = refused({"inputs": inputs}, TWO)
    assert error.code == code
    assert words in error.message
    assert error.input in ("b", None)
    if "input" in code:
        assert '"name": "a", "shape": [-1, 2, -1], "datatype": "FP32"' in error.expected


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"id": 3}, "wrong_type", '"id" is 3'),
        ({"id": "\ud800"}, "wrong_type", '"id" is the string'),
        ({"parameters": []}, "wrong_type", '"parameters" of the request is a list'),
        ({"outputs": {"name": "y"}}, "wrong_type", '"outputs" is an object'),
        ({"outputs": ["y"]}, "wrong_type", 'entry 0 of "outputs" is the string'),
        ({"outputs": [{}]}, "missing_field", 'entry 0 of "outputs" has no "name"'),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "duplicate_name", "'y' is twice"),
        ({"outputs": [{"name": "w"}]}, "unknown_output", "no output 'w'"),
        ({"outputs": [{"name": "y", "parameters": 1}]}, "wrong_type", "of output 'y' is 1"),
        ({"outputs": [{"name": "activations/no*"}]}, "bad_activations", "named 'no*'"),
        ({"outputs": [{"name": "activations/"}]}, "bad_activations", "named ''"),
        ({"outputs": [{"name": "activations/fc"}]}, "bad_activations", "named 'fc'"),
        (
            {"outputs": [{"name": "activations/fc", "parameters": {"raw": "yes"}}]},
            "wrong_type",
            '"raw" of output',
        ),
        (
            {"outputs": [{"name": "activations/relu"}, {"name": "activations/*"}]},
            "duplicate_name",
            "both hold 'relu'",
        ),
    ],
)
def test_what_stands_beside_the_inputs_is_checked(more, code, words):
    error = refused({"inputs": [X], **more})
    assert error.code == code
    assert words in error.message


def test_an_unknown_output_is_told_what_there_is():
    document = {"inputs": [X], "outputs": [{"name": "w"}]}
    assert refused(document).expected == "y, z, activations/LAYER"
    assert refused(document, layers=()).expected == "y, z"
    document["outputs"] = [{"name": "activations/x"}]
    assert refused(document, layers=()).code == "bad_activations"
    assert refused(document).expected == "relu, tanh"


def test_null_is_absent_and_unknown_parameters_are_ignored():
    more = {"id": None, "parameters": None, "outputs": None}
    _, envelope = read({"inputs": [X | {"parameters": None}], **more})
    assert envelope == oip.Envelope((oip.Requested("y"), oip.Requested("z")))
    outputs = [{"name": "z", "parameters": {"binary_data": True}}]
    _, envelope = read({"inputs": [X], "parameters": {"priority": 1}, "outputs": outputs})
    assert envelope.outputs == (oip.Requested("z", binary=True),)


def test_statistics_and_raw_are_wanted_side_by_side():
    outputs = [
        {"name": "activations/t*"},
        {"name": "activations/[fr]*", "parameters": {"raw": True}},
        {"name": "y"},
    ]
    _, envelope = read({"inputs": [X], "outputs": outputs})
    assert envelope.wanted == observe.Wanted(frozenset({"tanh"}), frozenset({"fc", "relu"}))


@pytest.mark.parametrize("place", ["data", "shape"])
def test_a_body_that_is_nested_too_deeply_is_refused(place, json_library):
    deep = b"[" * 20_000 + b"]" * 20_000
    entry = json.dumps(X | {place: "HERE"}).encode().replace(b'"HERE"', deep)
    with pytest.raises(RequestError) as caught:
        oip.decode(parse(b'{"inputs": [' + entry + b"]}", ONE), ONE, LAYERS)
    assert caught.value.status == 400


# Answering.


def request(*inputs, headers=None, **more) -> Request:
    return Request(json.dumps({"inputs": list(inputs), **more}).encode(), headers or {})


def ask(service, *requests):
    answers = service.handle(list(requests))
    assert [answer.status for answer in answers] == [200] * len(requests), answers
    return [json.loads(answer.body) for answer in answers]


def values(output):
    """The array that a client makes of an output."""
    array = np.array(output["data"], dtype=NUMPY[output["datatype"]])
    return array.reshape(output["shape"])


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """Every layer observed."""
    return Inside(ResidualNet, tmp_path_factory.mktemp("residual"))


@pytest.fixture(scope="module")
def branching(tmp_path_factory):
    """Only the activation functions observed, one of which runs."""
    return Inside(Branching, tmp_path_factory.mktemp("branching"), layers=("relu", "tanh"))


@pytest.fixture
def service(exported, tmp_path):
    def make(name: str) -> Service:
        with zipfile.ZipFile(exported(name).archive) as archive:
            archive.extractall(tmp_path)
        return Service(Model(tmp_path, CPU))

    return make


def images(rows):
    return torch.randn(rows, 1, 6, 6)


def layers(*names, **parameters):
    more = {"parameters": parameters} if parameters else {}
    return [{"name": f"activations/{name}", **more} for name in names]


def eager(served, x):
    with torch.no_grad():
        return served.definition.module(x.clone()).numpy()


def assert_table(output, tensors):
    """Compare an output of statistics with the tensors of its rows."""
    assert output["datatype"] == "FP64"
    assert output["parameters"] == {"columns": ",".join(COLUMNS)}
    table = values(output)
    assert table.shape == (len(tensors), 7)
    for row, own in zip(table, tensors, strict=True):
        x = own.double().numpy()
        zeros, strange = np.mean(x == 0), np.sum(~np.isfinite(x))
        wanted = [x.size, x.mean(), x.std(), x.min(), x.max(), zeros, strange]
        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-5)


def dead(served, x):
    """The observed layers that put out nothing but zeros, as the protocol writes them."""
    chosen = {layer.name for layer in served.layers.hooked if layer.chosen}
    seen = served.eager(x)
    return ",".join(key for key in seen if observe.layer_of(key) in chosen and not seen[key].any())


def test_the_answer_is_that_of_the_eager_model(residual, json_library):
    x = images(3)
    [body] = ask(residual.service, request(tensor("x", "FP32", x)))
    assert list(body) == ["model_name", "model_version", "outputs"]
    assert (body["model_name"], body["model_version"]) == ("ResidualNet", "1.0")
    [output] = body["outputs"]
    assert list(output) == ["name", "shape", "datatype", "data"]
    assert (output["name"], output["datatype"], output["shape"]) == ("output", "FP32", [3, 3])
    np.testing.assert_allclose(values(output), eager(residual, x), rtol=1e-5, atol=1e-5)
    [named] = ask(residual.service, request(tensor("x", "FP32", x), id="mine-ü"))
    assert named == {**body, "id": "mine-ü"}
    assert named["id"] == "mine-ü"


def test_outputs_are_chosen_and_ordered(service, json_library):
    model = service("dict_output")
    x = torch.randn(2, 4)
    specs = {spec.name: spec for spec in model._model.signature.outputs}
    [everything] = ask(model, request(tensor("x", "FP32", x), outputs=[]))
    assert [output["name"] for output in everything["outputs"]] == list(specs)
    [plain] = ask(model, Request(json.dumps({"inputs": x.tolist()}).encode()))
    for output in everything["outputs"]:
        wanted = plain["outputs"][output["name"]]
        assert values(output).tolist() == np.array(wanted, NUMPY[output["datatype"]]).tolist()
        assert NUMPY[output["datatype"]] == specs[output["name"]].dtype
    wanted = [{"name": "positive"}, {"name": "best"}]
    [body] = ask(model, request(tensor("x", "FP32", x), outputs=wanted))
    assert [output["name"] for output in body["outputs"]] == ["positive", "best"]
    assert [output["datatype"] for output in body["outputs"]] == ["BOOL", "INT64"]


def test_bfloat16_bool_and_states_without_rows(service):
    model = service("half")
    inputs = [tensor("x", "BF16", [[1.0, 2, 3]]), tensor("flag", "BOOL", [True])]
    [body] = ask(model, request(*inputs))
    assert body["outputs"][0]["data"] == [1.5, 3.0, 4.5]
    assert body["outputs"][0]["datatype"] == "BF16"


def test_a_model_without_a_row_axis(service):
    model = service("lstm_states")
    x = torch.randn(2, 5, 4)
    name = model._model.signature.inputs[0].name
    [plain] = ask(model, Request(json.dumps({"inputs": x.tolist()}).encode()))
    [body] = ask(model, request(tensor(name, "FP32", x), outputs=[{"name": "output_1_1"}]))
    np.testing.assert_array_equal(
        values(body["outputs"][0]), np.float32(plain["outputs"]["output_1_1"])
    )


def test_values_that_are_not_finite_are_null(tmp_path, json_library):
    def spoil(module):
        module.fc.bias.data[0] = float("nan")

    served = Inside(Branching, tmp_path, change=spoil)
    x = tensor("x", "FP32", [[1.0, 1, 1, 1]])
    outputs = [{"name": "output"}, *layers("fc")]
    [body] = ask(served.service, request(x, outputs=outputs))
    output, table = body["outputs"]
    assert output["data"][0] is None
    assert None not in output["data"][1:]
    assert table["data"] == [4.0, None, None, None, None, 0.0, 1.0]
    assert body["parameters"]["non_finite"] == "fc"


def test_all_forms_share_a_batch(residual, monkeypatch):
    runs = []
    run = Model.run
    monkeypatch.setattr(
        Model, "run", lambda self, arrays: runs.append(len(arrays[0])) or run(self, arrays)
    )
    x = [images(rows) for rows in (1, 2, 3, 1)]
    requests = [
        request(tensor("x", "FP32", x[0]), id="0"),
        Request(json.dumps({"inputs": x[1].tolist()}).encode()),
        request(tensor("x", "FP64", x[0])),
        request(tensor("x", "FP32", x[2])),
        Request(json.dumps({"instances": x[3].tolist()}).encode()),
    ]
    answers = residual.service.handle(requests)
    assert [answer.status for answer in answers] == [200, 200, 400, 200, 200]
    assert runs == [7]
    first, second, bad, third, fourth = [json.loads(answer.body) for answer in answers]
    assert bad["code"] == "wrong_datatype"
    found = [values(first["outputs"][0]), second["outputs"]["output"]]
    found += [values(third["outputs"][0]), fourth["predictions"]]
    for rows, own in zip(x, found, strict=True):
        np.testing.assert_allclose(own, eager(residual, rows), rtol=1e-5, atol=1e-5)


# Layers as outputs.


def test_statistics_of_layers_are_those_of_eager_hooks(residual, json_library):
    x = images(3)
    [body] = ask(residual.service, request(tensor("x", "FP32", x), outputs=layers("*")))
    by_row = [residual.eager(x[row : row + 1]) for row in range(3)]
    assert [output["name"] for output in body["outputs"]] == [
        f"activations/{key}" for key in residual.service._model.raw([x.numpy()], _all(residual))
    ]
    for output in body["outputs"]:
        key = output["name"].removeprefix("activations/")
        assert_table(output, [row[key] for row in by_row])
    assert "activations/blocks.0.relu@1" in {output["name"] for output in body["outputs"]}
    assert set(body["parameters"]) == {"dead"}
    found = set(body["parameters"]["dead"].split(","))
    assert found == set(dead(residual, x).split(","))


def _all(served):
    return frozenset(layer.name for layer in served.layers.hooked)


def test_requested_order_is_kept_around_globs(residual):
    outputs = [*layers("head"), {"name": "output"}, *layers("blocks.0.r*")]
    [body] = ask(residual.service, request(tensor("x", "FP32", images(1)), outputs=outputs))
    assert [output["name"] for output in body["outputs"]] == [
        "activations/head",
        "output",
        "activations/blocks.0.relu",
        "activations/blocks.0.relu@1",
    ]
    assert [output["shape"] for output in body["outputs"][::2]] == [[1, 7], [1, 7]]


def test_rows_behind_other_axes_have_their_own_statistics(tmp_path):
    served = Inside(Transformer, tmp_path)
    x = torch.randn(3, 5, 8)
    outputs = [*layers("mlp.1"), *layers("norm", raw=True)]
    [body] = ask(served.service, request(tensor("x", "FP32", x), outputs=outputs))
    table, raw = body["outputs"]
    assert_table(table, [served.eager(x[row : row + 1])["mlp.1"] for row in range(3)])
    np.testing.assert_allclose(values(raw), served.eager(x)["norm"], rtol=1e-5, atol=1e-5)


def test_raw_is_the_eager_layer_output_with_its_datatype(tmp_path):
    served = Inside(ManyTypes, tmp_path, layers=("relu",))
    x = torch.randn(2, 6)
    outputs = layers("parts", "flat", "relu", raw=True)
    [body] = ask(served.service, request(tensor("x", "FP32", x), outputs=outputs))
    wanted = served.eager(x)
    found = {output["name"].removeprefix("activations/"): output for output in body["outputs"]}
    assert {key: output["datatype"] for key, output in found.items()} == {
        "parts:0": "FP32",
        "parts:2_half": "FP16",
        "parts:2_sign": "BOOL",
        "parts:2_count": "INT64",
        "flat": "FP32",
        "relu": "FP32",
    }
    for key, output in found.items():
        assert values(output).shape == tuple(wanted[key].shape)
        np.testing.assert_allclose(values(output), wanted[key], rtol=1e-5, atol=1e-5)
    assert body["parameters"] == {"dead": dead(served, x)}


def test_complex_layers_have_statistics_but_cannot_be_sent(tmp_path):
    served = Inside(ManyTypes, tmp_path)
    x = tensor("x", "FP32", torch.randn(1, 6))
    plain = Request(json.dumps({"inputs": x["data"]}).encode())
    asking = Request(plain.body, {"x-activations": "raw; layers=spectrum"})
    bad, good, header = served.service.handle(
        [request(x, outputs=layers("spectrum", raw=True)), plain, asking]
    )
    assert (bad.status, good.status, header.status) == (400, 200, 400)
    assert "'spectrum' are complex" in json.loads(bad.body)["error"]
    nested = json.loads(header.body)["error"]
    assert json.loads(bad.body)["error"] == f"{nested['message']}; expected {nested['expected']}"
    [body] = ask(served.service, request(x, outputs=layers("spectrum")))
    assert body["outputs"][0]["data"][0] == 6


def test_statistics_raw_and_the_header_in_one_request(branching, monkeypatch):
    runs = []
    raw = Model.raw
    monkeypatch.setattr(
        Model, "raw", lambda self, arrays, names: runs.append(names) or raw(self, arrays, names)
    )
    x = torch.full((2, 4), 2.0)
    outputs = [*layers("relu"), *layers("fc", raw=True)]
    asking = {"x-activations": "raw; layers=relu"}
    [body] = ask(
        branching.service, request(tensor("x", "FP32", x), outputs=outputs, headers=asking)
    )
    wanted = branching.eager(x)
    assert_table(body["outputs"][0], list(wanted["relu"].split(1)))
    np.testing.assert_allclose(values(body["outputs"][1]), wanted["fc"], rtol=1e-5, atol=1e-5)
    assert list(body["activations"]["raw"]) == ["relu"]
    np.testing.assert_allclose(body["activations"]["raw"]["relu"], wanted["relu"], rtol=1e-5)
    assert frozenset({"fc", "relu"}) in runs


def test_the_header_stands_beside_the_outputs(branching):
    x = tensor("x", "FP32", torch.ones(1, 4))
    headers = {"x-activations": "stats; layers=relu"}
    [body] = ask(branching.service, request(x, headers=headers))
    assert list(body) == ["model_name", "model_version", "outputs", "activations"]
    assert list(body["activations"]["layers"]) == ["relu"]
    assert [output["name"] for output in body["outputs"]] == ["output"]


def test_a_branch_not_taken_is_absent(branching):
    up, down = (tensor("x", "FP32", sign * torch.ones(1, 4)) for sign in (1, -1))
    outputs = layers("relu", "tanh")
    bodies = ask(branching.service, request(up, outputs=outputs), request(down, outputs=outputs))
    names = [[output["name"] for output in body["outputs"]] for body in bodies]
    assert names == [["activations/relu"], ["activations/tanh"]]
    [body] = ask(branching.service, request(up, outputs=layers("tanh", raw=True)))
    assert body["outputs"] == []


def test_a_dead_layer_is_named(tmp_path):
    def kill(module):
        module.fc.bias.data.fill_(-100.0)

    served = Inside(Branching, tmp_path, change=kill)
    x = tensor("x", "FP32", np.full((1, 4), 0.1))
    [body] = ask(served.service, request(x, outputs=layers("fc")))
    assert body["parameters"] == {"dead": "relu"}


def test_raw_outputs_have_the_limit_of_the_header(branching, monkeypatch):
    monkeypatch.setattr(observe, "RAW_LIMIT", 10)
    x = tensor("x", "FP32", torch.ones(2, 4))
    bad, good = branching.service.handle(
        [request(x, outputs=layers("fc", "relu", raw=True)), request(x)]
    )
    assert (bad.status, good.status) == (400, 200)
    assert json.loads(bad.body)["code"] == "activations_too_large"


def test_looking_inside_changes_nobody_elses_answer(residual):
    x, y = images(2), images(1)
    quiet = [request(tensor("x", "FP32", x), id="q"), request(tensor("x", "FP32", x[:1]))]
    alone = [ask(residual.service, one)[0] for one in quiet]
    asking = request(tensor("x", "FP32", y), outputs=[*layers("*"), {"name": "output"}])
    first, loud, second = ask(residual.service, quiet[0], asking, quiet[1])
    for found, wanted in zip((first, second), alone, strict=True):
        assert set(found) == set(wanted)
        np.testing.assert_allclose(
            found["outputs"][0].pop("data"), wanted["outputs"][0].pop("data"), atol=1e-5
        )
        assert found == wanted
    assert len(loud["outputs"]) > 10
    tables = {output["name"]: output for output in loud["outputs"]}
    assert_table(tables["activations/head"], [residual.eager(y)["head"]])


def test_who_asks_among_its_outputs_is_logged_as_one_who_asks(branching, monkeypatch):
    seen = []

    def record(self, request_id, headers, draw, **found):
        seen.append((found["asked"], found["seen"] is not None))

    monkeypatch.setattr(Recorder, "record", record)
    x = tensor("x", "FP32", torch.ones(1, 4))
    ask(branching.service, request(x, outputs=layers("relu")), request(x))
    assert seen == [(True, True), (False, False)]
