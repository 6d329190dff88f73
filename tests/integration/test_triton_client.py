"""Triton's own HTTP client, unmodified, against the server: binary tensors and JSON."""

import shutil

import gevent
import ml_dtypes
import numpy as np
import pytest
import requests
import torch
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from export.definition import from_model_file
from tests.conftest import MODEL_FILES, ROOT


def client_of(server) -> triton.InferenceServerClient:
    address = server.url.removeprefix("http://")
    return triton.InferenceServerClient(
        address, concurrency=8, connection_timeout=30, network_timeout=30
    )


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def digits():
    return from_model_file(ROOT / "models" / "digits.py")


def image(x, binary=True):
    given = triton.InferInput("image", list(x.shape), "FP32")
    given.set_data_from_numpy(x.numpy(), binary_data=binary)
    return given


def wanted_of(definition, x):
    with torch.no_grad():
        return definition.module(x).numpy()


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_a_digit_is_read(client, digits, binary_in, binary_out):
    (x,) = digits.examples[2]
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
    answer = client.infer("digits", [image(x, binary_in)], outputs=outputs, request_id="mine-1")
    found = answer.as_numpy("probabilities")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted_of(digits, x), rtol=1e-5, atol=1e-5)
    response = answer.get_response()
    assert (response["model_name"], response["model_version"]) == ("digits", "1.0")
    assert response["id"] == "mine-1"
    sizes = [output.get("parameters", {}).get("binary_data_size") for output in response["outputs"]]
    assert sizes == [found.nbytes if binary_out is not False else None]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_and_answers(client, digits, coding):
    (x,) = digits.examples[2]
    answer = client.infer(
        "digits",
        [image(x)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    found = answer.as_numpy("probabilities")
    np.testing.assert_allclose(found, wanted_of(digits, x), rtol=1e-5, atol=1e-5)


def test_layers_are_outputs(client, digits):
    (x,) = digits.examples[1]
    outputs = [
        triton.InferRequestedOutput("activations/features.7", binary_data=True),
        triton.InferRequestedOutput("probabilities", binary_data=False),
    ]
    answer = client.infer("digits", [image(x)], outputs=outputs)
    assert answer.as_numpy("activations/features.7").shape == (2, 7)
    found = answer.as_numpy("probabilities")
    np.testing.assert_allclose(found, wanted_of(digits, x), rtol=1e-5, atol=1e-5)


def test_many_at_once_each_get_their_own(client, digits):
    images = torch.cat([x for (x,) in digits.examples])
    jobs = [gevent.spawn(client.infer, "digits", [image(one[None])]) for one in images]
    gevent.joinall(jobs, timeout=60)
    found = np.concatenate([job.get(block=False).as_numpy("probabilities") for job in jobs])
    np.testing.assert_allclose(found, wanted_of(digits, images), rtol=1e-5, atol=1e-5)


def test_a_mistake_is_told(client):
    given = triton.InferInput("image", [1, 8, 8], "FP64")
    given.set_data_from_numpy(np.zeros((1, 8, 8)))
    with pytest.raises(InferenceServerException) as caught:
        client.infer("digits", [given])
    assert caught.value.status() == "400"
    said = "input 'image' has datatype 'FP64', and nothing is cast; expected FP32"
    assert str(caught.value) == f"[400] {said}"


@pytest.mark.parametrize("binary", [True, False])
def test_a_wrong_shape_is_told(client, binary):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("digits", [image(torch.zeros(1, 8, 7), binary)])
    assert str(caught.value).startswith("[400] input 'image' has shape [1, 8, 7]")
    assert "; expected " in str(caught.value)


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy: TorchServe's own words")
def test_an_unknown_model_is_told(client):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nobody", [image(torch.zeros(1, 8, 8))])
    assert str(caught.value).startswith("[404] Model not found: nobody; expected one of the models")
    for ask in (client.get_model_metadata, lambda name: client.get_model_metadata(name, "7")):
        with pytest.raises(InferenceServerException) as caught:
            ask("nobody")
        assert str(caught.value).startswith("[404] there is no model 'nobody'; expected one of ")
    with pytest.raises(InferenceServerException) as caught:
        client.get_model_repository_index()
    assert "expected" in str(caught.value)


def test_a_version_in_the_path_is_the_fronts_work(client, digits, server):
    (x,) = digits.examples[0]
    if requests.get(f"{server.url}/openapi.json", timeout=30).ok:
        answer = client.infer("digits", [image(x)], model_version="1.0")
        assert answer.get_response()["model_version"] == "1.0"
    else:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("digits", [image(x)], model_version="1.0")
        assert caught.value.status() == "404"
    # The version that the other path takes is the archive's.
    raw = x.numpy().tobytes()
    headers = {"Content-Type": "application/octet-stream"}
    for version, status in (("1.0", 200), ("9.9", 404)):
        url = f"{server.url}/predictions/digits/{version}"
        assert requests.post(url, raw, headers=headers, timeout=30).status_code == status


def test_several_inputs_of_several_datatypes(others):
    left, right = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    definition = from_model_file(MODEL_FILES / "two_inputs.py")
    right = right[:, 0]
    with client_of(others) as client:
        given = [
            triton.InferInput("left", [3, 3], "FP32").set_data_from_numpy(left),
            triton.InferInput("right", [3], "FP32").set_data_from_numpy(right, binary_data=False),
        ]
        found = client.infer("two_inputs", given).as_numpy("score")
    with torch.no_grad():
        wanted = definition.module(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_bfloat16(others):
    x = np.array([[1, 2, 3], [-1, 0.5, 4]], ml_dtypes.bfloat16)
    flag = np.array([True, False])
    with client_of(others) as client:
        given = [
            triton.InferInput("x", [2, 3], "BF16").set_data_from_numpy(x),
            triton.InferInput("flag", [2], "BOOL").set_data_from_numpy(flag),
        ]
        found = client.infer("half", given).as_numpy("y")
    definition = from_model_file(MODEL_FILES / "half.py")
    with torch.no_grad():
        wanted = definition.module(
            torch.from_numpy(x.astype(np.float32)).bfloat16(), torch.from_numpy(flag)
        )
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), wanted.float().numpy())
