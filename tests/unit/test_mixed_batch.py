"""Requests of every form, shape and wish in one batch: answered as alone, to the bit."""

import gzip
import io
import json
import random
import zipfile

import numpy as np
import pytest
import torch

from handlers.model import Model
from handlers.service import Request, Service

JSON = {"content-type": "application/json"}
NPY = {"content-type": "application/x-npy"}
RAW = {"content-type": "application/octet-stream"}
ACCEPTS = [None, "*/*", "application/x-npy", "application/octet-stream", "text/html, */*;q=0.1"]
FORMS = ["bare", "inputs", "instances", "row", "oip", "oip binary", "npy", "npy row"]
LOOKS = [None, None, "stats", "raw; layers=relu"]


@pytest.fixture(scope="module")
def model(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elementwise")
    with zipfile.ZipFile(exported("elementwise").archive) as archive:
        archive.extractall(folder)
    return Model(folder, torch.device("cpu"))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def oip(x, more, binary):
    entry = {"name": "x", "shape": list(x.shape), "datatype": "FP32"}
    if not binary:
        document = {"inputs": [entry | {"data": x.ravel().tolist()}], **more}
        return Request(json.dumps(document).encode(), JSON)
    entry["parameters"] = {"binary_data_size": x.nbytes}
    start = json.dumps({"inputs": [entry], **more}).encode()
    length = {"inference-header-content-length": str(len(start))}
    return Request(start + x.tobytes(), RAW | length)


def good(pick: random.Random) -> Request:
    """Return a request that is answered, of any form."""
    generator = np.random.default_rng(pick.randrange(2**32))
    x = generator.normal(size=(pick.randint(1, 4), pick.choice([3, 4]))).astype("<f4")
    form = pick.choice(FORMS)
    headers = {}
    if (accept := pick.choice(ACCEPTS)) is not None:
        headers["accept"] = accept
    if (look := pick.choice(LOOKS)) is not None:
        headers = {"x-activations": look}
    if form.startswith("oip"):
        wishes = [
            {},
            {"parameters": {"binary_data_output": True}},
            {"outputs": [{"name": "activations/relu"}, {"name": "y"}], "id": "own"},
            {
                "outputs": [
                    {"name": "activations/relu", "parameters": {"raw": True, "binary_data": True}}
                ]
            },
        ]
        made = oip(x, pick.choice(wishes), form == "oip binary")
    elif form.startswith("npy"):
        if pick.random() < 0.2:
            x[0, 0] = pick.choice([np.nan, np.inf, -np.inf])
        made = Request(npy(np.asfortranarray(x) if form == "npy" else x[0]), NPY)
    else:
        values = x.tolist()
        document = {
            "bare": values,
            "inputs": {"inputs": {"x": values}},
            "instances": {"instances": values},
            "row": values[0],
        }[form]
        made = Request(json.dumps(document).encode(), JSON)
    headers = headers | dict(made.headers)
    if pick.random() < 0.2:
        return Request(gzip.compress(made.body), headers | {"content-encoding": "gzip"})
    # As TorchServe has it: a bytearray, whose tensors lie at any address.
    return Request(bytearray(made.body), headers)


def bad(pick: random.Random) -> Request:
    """Return a request that is refused."""
    whole = good(pick)
    return pick.choice(
        [
            Request(b"{", JSON),
            Request(b"[NaN]", JSON),
            Request(b"", JSON),
            Request(b"[1]", JSON | {"accept": "image/png"}),
            Request(b"[1]", {"content-type": "text/csv"}),
            Request(b"[1]", JSON | {"x-activations": "everything"}),
            Request(bytes(whole.body)[:-1] + b"\xff}", dict(whole.headers)),
            Request(npy(np.ones((2, 3))), NPY),
            Request(b"12345", RAW),
            Request(b"not gzip", JSON | {"content-encoding": "gzip"}),
            Request(b"[1, 2]", JSON | {"inference-header-content-length": "99"}),
        ]
    )


@pytest.mark.parametrize("seed", range(12))
def test_each_is_answered_as_alone(model, seed):
    pick = random.Random(seed)
    service = Service(model)
    batch = [good(pick) if pick.random() < 0.75 else bad(pick) for _ in range(24)]
    bodies = [bytes(request.body) for request in batch]
    alone = [service.handle([request])[0] for request in batch]
    together = service.handle(batch)
    for request, one, other in zip(batch, alone, together, strict=True):
        assert other == one, request
        assert one.status in (200, 400, 406, 415)
    assert len({one.status for one in alone}) > 1
    assert [bytes(request.body) for request in batch] == bodies


def test_one_run_for_all_forms_of_one_shape(model, monkeypatch):
    runs = []
    run = Model.run
    monkeypatch.setattr(
        Model, "run", lambda self, arrays: runs.append(len(arrays[0])) or run(self, arrays)
    )
    x = np.arange(8, dtype="<f4").reshape(2, 4)
    batch = [
        Request(json.dumps(x.tolist()).encode()),
        oip(x, {}, True),
        oip(x, {}, False),
        Request(npy(x), NPY),
        Request(npy(x[0]), NPY),
    ]
    answers = Service(model).handle(batch)
    assert [answer.status for answer in answers] == [200] * 5
    assert runs == [9]


def test_a_model_that_raises_for_one_answers_the_others(model, monkeypatch):
    run = Model.run

    def refuse_thirteen(self, arrays):
        if (arrays[0] == 13).any():
            raise ValueError("[METRICS]thirteen\n[PID]1")
        return run(self, arrays)

    pick = random.Random(5)
    batch = [
        request
        for request in (good(pick) for _ in range(40))
        if not {"x-activations", "content-encoding"} & request.headers.keys()
        and b"activations" not in request.body
    ][:8]
    alone = [Service(model).handle([request])[0] for request in batch]
    monkeypatch.setattr(Model, "run", refuse_thirteen)
    guilty = Request(npy(np.full((1, 4), 13, "<f4")), NPY)
    together = Service(model).handle([*batch[:4], guilty, *batch[4:]])
    assert together.pop(4).status == 500
    assert together == alone


def test_what_is_printed_of_an_exception_is_never_torchserves(model, monkeypatch, capsys):
    def fail(self, arrays):
        raise ValueError("x\n[METRICS]thirteen\n[PID]1\u2028[METRICS]")

    monkeypatch.setattr(Model, "run", fail)
    [answer] = Service(model).handle([Request(b"[[1, 2]]")])
    assert answer.status == 500
    printed = capsys.readouterr().err.splitlines()
    assert any("[METRICS]thirteen" in line for line in printed)
    assert all(line.startswith("vitrine: ") for line in printed)


def test_a_model_that_works_in_place_leaves_the_request_as_it_was(exported, tmp_path):
    with zipfile.ZipFile(exported("in_place").archive) as archive:
        archive.extractall(tmp_path)
    service = Service(Model(tmp_path, torch.device("cpu")))
    x = np.array([[1, 2, -3]], "<f4")
    body = bytearray(npy(x))
    looking = {"x-activations": "raw; layers=relu"}
    sent = [Request(body, NPY | looking), Request(b"[[1, 2, -3]]", looking), Request(body, NPY)]
    for batch in (sent, sent[:1], sent[1:2], sent[2:]):
        for answer in service.handle(batch):
            found = json.loads(answer.body)
            assert found["outputs"]["y"] == [[2, 2, 0]]
            assert found.get("activations", {"raw": {"relu": [[2, 2, 0]]}})["raw"]["relu"] == [
                [2, 2, 0]
            ]
    assert body == npy(x)
