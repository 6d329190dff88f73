"""TorchServe's side of a request, with a context that behaves as TorchServe's does."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
import torch

from handlers import coding, torchserve
from handlers.model import Model
from handlers.recorder import Recorder
from handlers.service import Service
from handlers.torchserve import TorchServeAdapter
from tests.errors import told

JSON = {"Content-Type": "application/json"}
RAW = {"Content-Type": "application/octet-stream"}


class Context:
    """What `ts.context.Context` does for a batch, headers in the client's case included."""

    def __init__(self, *headers):
        self.sent = headers
        self.headers = [{} for _ in headers]
        self.statuses = [(200, "")] * len(headers)

    def get_all_request_header(self, idx):
        return {**self.sent[idx], "body": {"content-type": ""}}

    def get_request_id(self, idx):
        return f"id-{idx}"

    def set_response_status(self, code, phrase, idx):
        assert phrase.isascii()
        self.statuses[idx] = (code, phrase)

    def set_response_header(self, idx, key, value):
        self.headers[idx][key] = value


@pytest.fixture
def adapter(exported, tmp_path):
    with zipfile.ZipFile(exported("elementwise").archive) as archive:
        archive.extractall(tmp_path)
    made = TorchServeAdapter()
    made._model = Model(tmp_path, torch.device("cpu"))
    made._version = made._model.signature.model_version
    made._recorder = Recorder(made._model.signature)
    made._service = Service(made._model, made._recorder)
    return made


def test_every_status_has_a_phrase():
    assert {400, 406, 413, 415, 500, 503, 507} <= torchserve._PHRASES.keys()
    assert all(phrase.isascii() for phrase in torchserve._PHRASES.values())


def test_each_of_a_batch_has_its_own_status_and_headers(adapter):
    x = np.array([[1, -2, 3, 0.5]], "<f4")
    file = bytearray(b"\x93NUMPY")
    context = Context(
        JSON | {"X-Correlation-ID": "mine", "describe": "True"},
        JSON | {"ACCEPT": "application/octet-stream"},
        {"CONTENT-TYPE": "application/x-npy", "X-Correlation-Id": "file"},
        {"content-type": "application/x-www-form-urlencoded", "traceparent": "00-1-2-01"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"describe": "true"},
    )
    body = bytearray(json.dumps(x.tolist()).encode())
    parts = [{"body": body}, {"body": body}, {"body": file}, {"x": b"1"}, {"data": body}, {}]
    bodies = adapter.handle(parts, context)
    assert [status for status, _ in context.statuses] == [200, 200, 400, 415, 200, 200]
    wanted = {"outputs": {"y": [[2, 2, 6, 1]]}}
    assert json.loads(bodies[0]) == json.loads(bodies[4]) == wanted
    assert np.frombuffer(bodies[1], "<f4").tolist() == [2, 2, 6, 1]
    assert json.loads(bodies[2])["error"]["code"] == "not_npy"
    assert json.loads(bodies[3])["error"]["code"] == "unsupported_media_type"
    assert json.loads(bodies[5])["model"] == "elementwise"
    assert [headers.pop("x-model-version") for headers in context.headers] == ["1.0"] * 6
    assert context.headers[0] == {"content-type": "application/json", "x-correlation-id": "mine"}
    assert context.headers[1] == {"content-type": "application/octet-stream"}
    assert context.headers[2] == {"content-type": "application/json", "x-correlation-id": "file"}
    assert context.headers[3]["traceparent"] == "00-1-2-01"


def test_an_answer_that_is_withheld_leaves_no_headers_of_its_own(adapter):
    many = np.ones((2000, 4), "<f4")
    start = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [2000, 4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": many.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    context = Context(
        JSON | {"Accept-Encoding": "gzip", "X-Correlation-Id": "mine"},
        RAW | {"Inference-Header-Content-Length": str(len(start))},
    )
    parts = [
        {"body": bytearray(json.dumps(many.tolist()).encode())},
        {"body": bytearray(start + many.tobytes())},
    ]
    adapter._limit = 100
    withheld = adapter.handle(parts, context)
    for path, body, headers in zip(("/predictions", "/v2"), withheld, context.headers, strict=True):
        assert told(path, json.loads(body))["code"] == "answer_too_large"
        assert headers["content-type"] == "application/json"
        assert headers.keys() <= {"content-type", "x-correlation-id", "x-model-version"}
    assert [status for status, _ in context.statuses] == [413, 413]
    adapter._limit = 10_000_000
    context = Context(*context.sent)
    packed, binary = adapter.handle(parts, context)
    assert context.headers[0]["content-encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(packed))["outputs"]["y"]) == 2000
    assert len(packed) < coding.LEAST_BYTES
    assert binary.endswith(np.full((2000, 4), 2, "<f4").tobytes())


OIP = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]})


@pytest.mark.parametrize(
    ("headers", "body", "flat"),
    [
        # The front has told the form.
        ({"X-Vitrine-Errors": "string"}, "[", True),
        ({"X-Vitrine-Errors": "object"}, OIP, False),
        ({"X-Vitrine-Errors": "object", "Inference-Header-Content-Length": "999"}, OIP, False),
        # There is no front.
        ({}, "[", False),
        ({}, OIP, True),
        ({}, '{"inputs": [{"name": 1}]}', True),
        ({"Inference-Header-Content-Length": "999"}, "", True),
    ],
)
def test_an_error_has_the_form_that_the_front_says_or_the_body_shows(adapter, headers, body, flat):
    context = Context(JSON | headers)
    [answer] = adapter.handle([{"body": bytearray(body.encode())}], context)
    assert context.statuses[0][0] == 400
    told("/v2" if flat else "/predictions", json.loads(answer))


def test_a_body_is_not_copied_on_its_way(adapter, monkeypatch):
    seen = []
    run = Model.run
    monkeypatch.setattr(Model, "run", lambda self, arrays: seen.append(arrays) or run(self, arrays))
    file = io.BytesIO()
    np.save(file, np.ones((2, 4), "<f4"))
    body = bytearray(file.getvalue())
    adapter.handle([{"body": body}], Context({"content-type": "application/x-npy"}))
    assert np.shares_memory(seen[0][0], np.frombuffer(body, np.uint8))


def test_a_batch_time_is_written_ten_times_a_second_at_most(monkeypatch):
    clock = [5.0]
    monkeypatch.setattr("handlers.torchserve.time.monotonic", lambda: clock[0])
    written = []
    add = torchserve._sparse(lambda *given, **options: written.append((given, options)))
    add("PredictionTime", 1.5)
    clock[0] += 0.09
    add("PredictionTime", 2.5)
    clock[0] += 0.02
    add("PredictionTime", 3.5, unit="ms")
    assert written == [(("PredictionTime", 1.5), {}), (("PredictionTime", 3.5), {"unit": "ms"})]
