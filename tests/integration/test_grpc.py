"""The Open Inference Protocol over gRPC, as Triton's client speaks it, on the public port."""

import os
import shutil
from contextlib import closing
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
import torch
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from export.definition import from_model_file
from server.grpc_messages import MESSAGES
from tests.conftest import ROOT
from tests.integration.turns import assert_both_are_right

pytestmark = pytest.mark.skipif(
    not os.environ.get("VITRINE_URL") and shutil.which("haproxy") is None,
    reason="no haproxy to be the front",
)


@pytest.fixture(scope="module")
def client(server):
    with closing(triton.InferenceServerClient(urlsplit(server.url).netloc)) as client:
        yield client


@pytest.fixture(scope="module")
def digits():
    return from_model_file(ROOT / "models" / "digits.py")


def image(array, name="image", datatype="FP32"):
    sent = triton.InferInput(name, list(array.shape), datatype)
    sent.set_data_from_numpy(array)
    return sent


def test_the_server_and_its_models(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "vitrine"
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1.0")
    metadata = client.get_model_metadata("digits")
    [taken] = metadata.inputs
    assert (taken.name, taken.datatype, list(taken.shape)) == ("image", "FP32", [-1, 8, 8])
    with pytest.raises(InferenceServerException, match=r"no model .nobody.") as caught:
        client.get_model_metadata("nobody")
    assert "NOT_FOUND" in caught.value.status()


@pytest.mark.parametrize("version", ["", "1.0"])
def test_tensors_go_there_and_back(client, digits, version):
    for (x,) in digits.examples:
        answer = client.infer("digits", [image(x.numpy())], version, request_id="mine")
        with torch.no_grad():
            wanted = digits.module(x)
        np.testing.assert_allclose(answer.as_numpy("probabilities"), wanted, rtol=1e-5, atol=1e-5)
        assert answer.get_response().id == "mine"


def test_typed_contents_are_read_too(server, client, digits):
    (x,) = digits.examples[0]
    request = service_pb2.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=x.shape)
    tensor.contents.fp32_contents.extend(x.flatten().tolist())
    stub = service_pb2_grpc.GRPCInferenceServiceStub(client._channel)
    answer = stub.ModelInfer(request, timeout=30)
    with torch.no_grad():
        wanted = digits.module(x).numpy()
    got = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(wanted.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_layers_are_outputs(client, digits):
    (x,) = digits.examples[1]
    outputs = [
        triton.InferRequestedOutput("probabilities"),
        triton.InferRequestedOutput("activations/features.7"),
    ]
    answer = client.infer("digits", [image(x.numpy())], outputs=outputs)
    assert answer.as_numpy("activations/features.7").shape[1] == 7


@pytest.mark.parametrize(
    ("model", "array", "datatype", "status", "text"),
    [
        ("nobody", np.zeros((1, 8, 8), np.float32), "FP32", "NOT_FOUND", "model_not_found"),
        ("digits", np.zeros((1, 8, 8)), "FP64", "INVALID_ARGUMENT", "wrong_datatype"),
        ("digits", np.zeros((1, 7), np.float32), "FP32", "INVALID_ARGUMENT", "wrong_shape"),
        ("digits", np.full((1, 8, 8), 99, np.float32), "FP32", "INVALID_ARGUMENT", "out_of_range"),
    ],
)
def test_errors_have_their_code(client, model, array, datatype, status, text):
    with pytest.raises(InferenceServerException, match=text) as caught:
        client.infer(model, [image(array, datatype=datatype)])
    assert status in caught.value.status()


def test_contents_that_do_not_go_together(client):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(client._channel)
    request = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[b"", b""])
    with pytest.raises(Exception, match="raw_input_contents"):
        stub.ModelInfer(request, timeout=30)


def test_grpc_and_http_share_a_port_and_batches(server, client, digits):
    def other(own):
        return client.infer("digits", [image(own.numpy())]).as_numpy("probabilities")

    assert_both_are_right(server, digits, other, threads=16)
    assert requests.get(f"{server.url}/v2/health/ready", timeout=10).ok


def test_messages_are_the_protocols():
    """What one side writes, the other reads, field by field."""
    request = service_pb2.ModelInferRequest(model_name="m", model_version="1", id="i")
    request.parameters["n"].int64_param = 3
    request.parameters["d"].double_param = 0.5
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.parameters["s"].string_param = "t"
    for field in service_pb2.InferTensorContents.DESCRIPTOR.fields:
        value = b"a" if field.name == "bytes_contents" else 1
        getattr(tensor.contents, field.name).append(value)
    request.outputs.add(name="y").parameters["b"].bool_param = True
    request.raw_input_contents.append(b"raw")
    ours = MESSAGES["ModelInferRequest"].FromString(request.SerializeToString())
    assert not ours.inputs[0].contents.fp32_contents[1:]
    assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()) == request
    assert str(ours) == str(request)
    metadata = service_pb2.ModelMetadataResponse(name="m", versions=["1"], platform="p")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1])
    metadata.outputs.add(name="y", datatype="FP32", shape=[-1])
    ours = MESSAGES["ModelMetadataResponse"].FromString(metadata.SerializeToString())
    assert str(ours) == str(metadata)
