"""The Open Inference Protocol over HTTP, at the URL that its clients use."""

import shutil

import numpy as np
import pytest
import torch

from export.definition import from_model_file
from export.layers import watch
from tests.conftest import ROOT
from tests.errors import told
from tests.integration.turns import assert_both_are_right

URL = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def digits():
    return from_model_file(ROOT / "models" / "digits.py")


def document(x, **more):
    image = {"name": "image", "shape": list(x.shape), "datatype": "FP32"}
    return {"inputs": [{**image, "data": x.flatten().tolist()}], **more}


def values(output):
    return np.array(output["data"], dtype=np.float64).reshape(output["shape"])


def test_a_digit_is_read(server, digits):
    (x,) = digits.examples[2]
    answer = server.post(URL, document(x, id="mine-1"))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("digits", "1.0", "mine-1")
    [output] = body["outputs"]
    assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
    with torch.no_grad():
        np.testing.assert_allclose(values(output), digits.module(x), rtol=1e-5, atol=1e-5)
    assert server.post("/predictions/digits", document(x, id="mine-1")).json() == body


def test_layers_are_outputs(server, digits):
    (x,) = digits.examples[1]
    outputs = [
        {"name": "probabilities"},
        {"name": "activations/features.7"},
        {"name": "activations/head", "parameters": {"raw": True}},
    ]
    answer = server.post(URL, document(x, outputs=outputs))
    assert answer.status_code == 200, answer.text
    probabilities, table, head = answer.json()["outputs"]
    with torch.no_grad(), watch(digits.module, ["features.7", "head"]) as calls:
        wanted = digits.module(x)
    relu, logits = (call.parts[0][1] for call in calls)
    np.testing.assert_allclose(values(probabilities), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values(head), logits, rtol=1e-5, atol=1e-5)
    assert table["shape"] == [2, 7]
    np.testing.assert_allclose(values(table)[:, 1], relu.mean(1), rtol=1e-5, atol=1e-5)
    assert "dead" in answer.json()["parameters"]


def test_a_mistake_is_answered_in_the_form_of_the_path(server, digits):
    (x,) = digits.examples[0]
    wrong = document(x)
    wrong["inputs"][0]["datatype"] = "FP64"
    answer = server.post(URL, wrong)
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "input 'image' has datatype 'FP64', and nothing is cast; expected FP32",
        "code": "wrong_datatype",
        "input": "image",
        "expected": "FP32",
    }


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy: no path is known")
def test_the_path_goes_before_the_body(server, digits):
    """The protocol elsewhere has the other form, and other bodies at its URL have its form."""
    (x,) = digits.examples[0]
    wrong = document(x[:, :7])
    for path in (URL, "/predictions/digits", "/v1/models/digits:predict"):
        for body in (wrong, x[:, :7].tolist(), "text"):
            answer = server.post(path, body)
            assert answer.status_code == 400
            assert told(path, answer.json())["input"] == "image"


def test_both_forms_at_once_each_get_their_own(server, digits):
    def other(own):
        return values(server.post(URL, document(own)).json()["outputs"][0])

    assert_both_are_right(server, digits, other, threads=8)
