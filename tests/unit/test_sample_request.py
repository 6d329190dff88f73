"""The request that shows whether a model answers, from its archive, and what its answer says."""

import json
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from formats.internal import PROBE
from handlers.message import Request
from handlers.model import Model
from handlers.service import Service
from server.archives import read_archive
from server.sample_request import Target, sample_request, try_model


@pytest.fixture
def alone(exported, tmp_path):
    """An archive of a model without its sample beside it."""

    def copy(name):
        return read_archive(Path(shutil.copy(exported(name).archive, tmp_path)))

    return copy


@pytest.mark.parametrize("name", ["two_inputs", "token_lstm", "half", "branch", "lost_gpu"])
def test_what_a_model_warms_up_with_is_a_request_that_it_answers(alone, tmp_path, name):
    archive = alone(name)
    assert archive.sample is None
    request = sample_request(archive)
    with zipfile.ZipFile(archive.path) as packed:
        packed.extractall(tmp_path / "unpacked")
    headers = {key.lower(): value for key, value in request.headers.items()}
    service = Service(Model(tmp_path / "unpacked", torch.device("cpu")))
    [answer] = service.handle([Request(bytearray(request.body), headers)])
    assert answer.status == 200, answer.body


def test_an_unpacked_archive_and_a_sample_beside_one(alone, tmp_path):
    archive = alone("branch")
    packed = sample_request(archive)
    with zipfile.ZipFile(archive.path) as content:
        content.extractall(tmp_path / "folder")
    assert sample_request(read_archive(tmp_path / "folder")) == packed
    archive.path.with_name("branch.sample.json").write_text("[1, 2]")
    assert sample_request(archive).body == b"[1, 2]"


@pytest.fixture
def torchserve():
    """Answers what the test says; keeps the headers that came."""
    said = {"status": 200, "body": b"{}"}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            said["path"], said["headers"] = self.path, self.headers
            self.rfile.read(int(self.headers["Content-Length"]))
            if said["status"] is None:
                return
            self.send_response(said["status"])
            self.end_headers()
            self.wfile.write(said["body"])

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Target(None, "127.0.0.1", httpd.server_port), said
        httpd.shutdown()
        thread.join()


def error(message, kind="InternalServerException"):
    return json.dumps({"code": 500, "type": kind, "message": message}).encode()


@pytest.mark.parametrize(
    ("status", "body", "works", "words"),
    [
        (200, b"{}", True, "answered"),
        (500, error("it broke"), False, "answered 500: it broke"),
        (400, b'{"error": {"code": "wrong_shape", "message": "too long"}}', False, "400: too long"),
        (500, b"<html>", False, "500: <html>"),
        (503, error("no worker is available", "ServiceUnavailableException"), None, "503"),
        (503, error("Prediction failed"), False, "503: Prediction failed"),
        (500, error("Worker died."), None, "Worker died."),
        (None, b"", None, "was not answered"),
    ],
)
def test_what_an_answer_says_of_the_model(alone, torchserve, status, body, works, words):
    target, said = torchserve
    said |= {"status": status, "body": body}
    outcome = try_model(target, alone("branch"), 5.0)
    assert outcome.works is works
    assert words in outcome.said
    assert said["path"] == "/predictions/branch/1.0"
    assert said["headers"][PROBE] == "1"


def test_a_model_without_a_sample_is_not_asked(tmp_path):
    path = tmp_path / "foreign.mar"
    with zipfile.ZipFile(path, "w") as packed:
        manifest = {"model": {"modelName": "foreign", "modelVersion": "1.0"}}
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    outcome = try_model(Target(None, "127.0.0.1", 1), read_archive(path), 5.0)
    assert (outcome.works, outcome.said[:9]) == (True, "not tried")
