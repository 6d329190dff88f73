"""The image's front: the truth about its models, the forms of errors, and nothing else to reach."""

import time

import pytest
import requests

from tests.errors import told

pytestmark = pytest.mark.container

KILL = """\
import json, os, signal, urllib.request
with urllib.request.urlopen("http://127.0.0.1:8081/models/digits") as answer:
    os.kill(json.load(answer)[0]["workers"][0]["pid"], signal.SIGKILL)
"""


def get(running, path):
    return requests.get(f"{running.url}{path}", timeout=10)


def wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_is_served_is_told(examples):
    assert get(examples, "/ping").json() == {"status": "Healthy"}
    assert get(examples, "/v2/health/ready").json() == {"ready": True}
    digits = get(examples, "/v2/models/digits").json()
    assert digits["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}]
    assert "/v2/models/digits/infer" in get(examples, "/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("POST", "/predictions/none", {"data": b"[1]"}, 404, "model_not_found"),
        ("GET", "/models", {}, 404, "not_found"),
        ("GET", "/metrics", {}, 404, "not_found"),
        ("GET", "/predictions/digits", {}, 405, "method_not_allowed"),
        ("POST", "/predictions/digits", {"data": bytes(16_777_217)}, 413, "body_too_large"),
        ("POST", "/predictions/digits", {"data": b"{"}, 400, "not_json"),
        ("POST", "/v2/models/none/infer", {"data": b"[1]"}, 404, "model_not_found"),
        ("GET", "/v2/models/none", {}, 404, "model_not_found"),
        ("GET", "/v2/models", {}, 404, "not_found"),
        ("GET", "/v2/models/digits/infer", {}, 405, "method_not_allowed"),
        ("POST", "/v2/models/digits/infer", {"data": bytes(16_777_217)}, 413, "body_too_large"),
        ("POST", "/v2/models/digits/infer", {"data": b"{"}, 400, "not_json"),
    ],
)
def test_errors_have_the_form_of_their_path(examples, method, path, options, status, code):
    answer = requests.request(method, f"{examples.url}{path}", timeout=30, **options)
    assert answer.status_code == status, answer.text
    assert told(path, answer.json())["code"] == code


def test_a_killed_worker_shows_and_comes_back(start):
    running = start()
    running.wait_healthy()
    code, output = running.exec("python", "-c", KILL)
    assert code == 0, output
    wait(lambda: get(running, "/v2/models/digits/ready").status_code == 503, 5)
    assert get(running, "/v2/models/dann/ready").ok
    wait(lambda: get(running, "/v2/health/ready").ok, 120)
