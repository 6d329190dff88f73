"""Bodies, answers and codings over HTTP: what TorchServe passes on, and what comes back."""

import gzip
import io
import json
import zlib

import numpy as np
import pytest
import requests
import torch

from export.definition import from_model_file
from tests.conftest import ROOT
from tests.readme import run_page

URL = "/predictions/digits"
NPY = {"content-type": "application/x-npy"}
RAW = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def digits():
    return from_model_file(ROOT / "models" / "digits.py")


@pytest.fixture(scope="module")
def x(digits):
    return digits.examples[1][0]


@pytest.fixture(scope="module")
def wanted(digits, x):
    with torch.no_grad():
        return digits.module(x).numpy()


def npy(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def assert_same(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_arrays_in_and_json_out(server, x, wanted):
    for body, headers in ((npy(x.numpy()), NPY), (x.numpy().tobytes(), RAW)):
        answer = server.post(URL, data=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert_same(answer.json()["outputs"]["probabilities"], wanted)


def test_arrays_out(server, x, wanted):
    answer = server.post(URL, x.tolist(), headers={"accept": "application/x-npy"})
    assert answer.headers["content-type"] == "application/x-npy"
    found = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert found.dtype == np.float32
    assert_same(found, wanted)
    answer = server.post(URL, x.tolist(), headers={"accept": "application/octet-stream, */*;q=0.1"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert_same(np.frombuffer(answer.content, "<f4").reshape(-1, 10), wanted)


@pytest.mark.parametrize("headers", [{}, {"content-type": "image/png"}])
def test_a_picture_is_classified_however_it_is_sent(server, headers):
    picture = (ROOT / "docs" / "images" / "seven.png").read_bytes()
    for method in ("PUT", "POST"):
        answer = requests.request(
            method, server.url + URL, data=picture, headers=headers, timeout=60
        )
        assert answer.json()["labels"] == {"probabilities": "7"}
    broken = server.post(URL, data=picture[:500], headers=headers)
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "not_an_image")


def test_an_answer_that_cannot_be_had(server, x):
    answer = server.post(URL, x.tolist(), headers={"accept": "image/png"})
    assert (answer.status_code, answer.reason) == (406, "Not Acceptable")
    assert answer.json()["error"]["code"] == "not_acceptable"


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
def test_codings_of_a_request(server, x, wanted, coding, pack):
    body = pack(json.dumps(x.tolist()).encode())
    headers = JSON | {"content-encoding": coding}
    answer = server.post(URL, data=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert_same(answer.json()["outputs"]["probabilities"], wanted)


def test_a_bomb_is_refused_by_its_size(server):
    bomb = gzip.compress(b"[" + b" " * 40_000_000 + b"]")
    answer = server.post(URL, data=bomb, headers=JSON | {"content-encoding": "gzip"})
    assert answer.status_code == 413
    error = answer.json()["error"]
    assert (error["code"], error["expected"]) == (
        "body_too_large",
        "at most 16777216 bytes (max_request_size)",
    )


def test_what_is_not_understood_is_a_415(server):
    for headers in (
        {"content-type": "application/x-npz"},
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=utf-16"},
        JSON | {"content-encoding": "br"},
    ):
        answer = server.post(URL, data=b"[1]", headers=headers)
        assert answer.status_code == 415, headers
        assert answer.json()["error"]["expected"]


def test_long_json_comes_compressed_to_who_takes_it(server, digits):
    many = np.concatenate([x.numpy() for (x,) in digits.examples] * 100)[:400]
    plain = server.post(
        URL, data=many.tobytes(), headers=RAW | {"accept-encoding": "identity"}, stream=True
    )
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept-Encoding"
    packed = server.post(
        URL, data=many.tobytes(), headers=RAW | {"accept-encoding": "gzip"}, stream=True
    )
    assert packed.headers["content-encoding"] == "gzip"
    sent = packed.raw.read(decode_content=False)
    assert json.loads(gzip.decompress(sent)) == plain.json()
    assert len(sent) < len(plain.content)


def test_a_part_of_a_form_is_a_body(server, x, wanted):
    answer = server.post(URL, files={"body": ("x.json", json.dumps(x.tolist()))})
    assert answer.status_code == 200, answer.text
    assert_same(answer.json()["outputs"]["probabilities"], wanted)


def test_kserve_v1_with_inputs(server, x, wanted):
    answer = server.post("/v1/models/digits:predict", {"inputs": x.tolist()})
    assert_same(answer.json()["outputs"]["probabilities"], wanted)
    answer = server.post("/v1/models/digits:predict", {"instances": x.tolist()})
    assert_same(answer.json()["predictions"], wanted)


@pytest.mark.parametrize("header", ["describe", "explain", "Describe", "url_path"])
def test_headers_of_torchserves_own_do_not_steer(server, x, wanted, header):
    for body, headers in ((npy(x.numpy()), NPY), (b"", NPY), (b"{", JSON)):
        answer = server.post(URL, data=body, headers=headers | {header: "True"})
        assert answer.status_code == (200 if len(body) > 1 else 400), answer.text


def test_hostile_ids_come_back_nowhere(server, x):
    for value in (b"\xc3\xbc", b"a\tb", b"x" * 2000):
        headers = {"x-correlation-id": value, "traceparent": value}
        answer = server.post(URL, x.tolist(), headers=headers)
        assert answer.status_code == 200
        assert "x-correlation-id" not in answer.headers


def test_the_lines_of_the_page_work(server, tmp_path):
    roles = set()
    for role, printed in run_page("requests.md", server.url, tmp_path):
        roles.add(role)
        if role == "accept":
            assert np.load(tmp_path / "answer.npy").shape == (1, 10)
        else:
            assert '"outputs":' in printed, printed
    assert roles == {"npy", "raw", "picture", "binary", "accept", "gzip"}
