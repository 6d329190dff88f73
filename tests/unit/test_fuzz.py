"""Whatever is sent: an answer or a clear refusal, and the neighbours in the batch never notice.

`scripts/fuzz` runs a hundred thousand cases; here, as many as take a few seconds.
"""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from handlers import jsontext
from handlers.model import Model
from handlers.service import Request, Service
from tests.errors import told
from tests.requests_of_all_kinds import requests

TENSORS = {
    "elementwise": [("x", "FP32", "<f4", (4,))],
    "elementwise_pair": [("a", "FP32", "<f4", (2,)), ("b", "INT64", "<i8", ())],
}
NEIGHBOURS = {
    "elementwise": [b"[[0.1, -2, 3, 4]]", b'{"instances": [[1, 2, 3], [4, 5, 0.7]]}'],
    "elementwise_pair": [b'{"a": [0.1, 2], "b": 3}', b'{"instances": [{"a": [1, 2], "b": 9}]}'],
}
LIMIT = 100_000


class Target:
    """A served model, with neighbours whose answers are known."""

    def __init__(self, archive, folder, name):
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        self.service = Service(Model(folder, torch.device("cpu")), max_request_bytes=LIMIT)
        self.neighbours = [Request(body) for body in NEIGHBOURS[name]]
        self.alone = [self.service.handle([one])[0] for one in self.neighbours]
        assert [answer.status for answer in self.alone] == [200, 200]

    def ask(self, request):
        first, second = self.neighbours
        before, answer, after = self.service.handle([first, request, second])
        assert [before, after] == self.alone
        return answer


@pytest.fixture(scope="module")
def targets(exported, tmp_path_factory):
    return {
        name: Target(exported(name).archive, tmp_path_factory.mktemp(name), name)
        for name in TENSORS
    }


def assert_sound(answer):
    for name, value in answer.headers.items():
        assert f"{name}{value}".isascii()
        assert f"{name}{value}".isprintable()
        assert len(value) <= 1024
    if answer.status != 200:
        assert answer.status in (400, 406, 413, 415), answer
        assert answer.headers["content-type"] == "application/json"
        document = json.loads(answer.body)
        path = "/v2" if isinstance(document["error"], str) else "/predictions"
        assert told(path, document)["message"].isprintable()
        assert len(answer.body) < 20_000
        return
    body = answer.body
    if answer.headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    length = answer.headers.get("Inference-Header-Content-Length")
    media = answer.headers["content-type"]
    if media == "application/json" or length is not None:
        json.loads(body[: int(length) if length is not None else None])
    elif media == "application/x-npy":
        np.load(io.BytesIO(body), allow_pickle=False)


@pytest.mark.parametrize("name", TENSORS)
@given(data=st.data(), fast=st.booleans())
def test_anything_is_answered_and_nobody_else_notices(targets, name, data, fast):
    request = data.draw(requests(TENSORS[name]))
    body = bytes(request.body)
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(jsontext, "orjson", None)
            patch.setattr(targets[name], "alone", slow_answers(targets[name]))
        answer = targets[name].ask(request)
    assert_sound(answer)
    assert bytes(request.body) == body
    event(f"{answer.status} {code_of(answer)}")


def code_of(answer):
    """Return the code of a refusal, or what kind of answer it is."""
    if answer.status != 200:
        document = json.loads(answer.body)
        return document.get("code") or document["error"]["code"]
    return answer.headers["content-type"]


def slow_answers(one):
    """Return the neighbours' answers as the standard library writes them."""
    return [one.service.handle([neighbour])[0] for neighbour in one.neighbours]
