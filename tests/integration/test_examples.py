"""The example models over HTTP: the eager model's answers, and clear errors."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from export.definition import from_model_file
from tests.conftest import ROOT
from tests.integration.conftest import EXAMPLES


@pytest.fixture(scope="module")
def eager():
    """The example models as Python runs them."""
    definitions = {name: from_model_file(ROOT / "models" / f"{name}.py") for name in EXAMPLES}

    def answer(name: str, x: torch.Tensor) -> dict[str, np.ndarray]:
        definition = definitions[name]
        with torch.no_grad():
            result = definition.module(x)
        outputs = result if isinstance(result, tuple) else (result,)
        return dict(zip(definition.outputs, (output.numpy() for output in outputs), strict=True))

    answer.definitions = definitions
    return answer


def assert_same(body, wanted):
    for name, values in wanted.items():
        np.testing.assert_allclose(body["outputs"][name], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_answers_as_the_eager_model(server, eager, name):
    for (x,) in eager.definitions[name].examples:
        answer = server.post(f"/predictions/{name}", {"inputs": x.tolist()})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert_same(answer.json(), eager(name, x))


def test_a_digit_is_read(server):
    from models.data import split

    held_out = split().held_out
    answer = server.post("/predictions/digits", {"instances": held_out.images[:32].tolist()})
    body = answer.json()
    labels = body["labels"]["probabilities"]
    right = sum(int(a) == int(b) for a, b in zip(labels, held_out.labels[:32], strict=True))
    assert right >= 30
    np.testing.assert_allclose(np.sum(body["predictions"], axis=1), 1.0, atol=1e-5)


def test_kserve_v1(server, eager):
    (x,) = eager.definitions["activation_mlp"].examples[1]
    answer = server.post("/v1/models/activation_mlp:predict", {"instances": x.tolist()})
    wanted = eager("activation_mlp", x)["scores"]
    np.testing.assert_allclose(answer.json()["predictions"], wanted, rtol=1e-5, atol=1e-5)


def test_one_row_in_one_row_out(server, eager):
    (x,) = eager.definitions["digits"].examples[0]
    body = server.post("/predictions/digits", x[0].tolist()).json()
    assert np.shape(body["outputs"]["probabilities"]) == (10,)
    assert isinstance(body["labels"]["probabilities"], str)


BAD = [
    (b"", "empty_body"),
    (b"{", "not_json"),
    (b"[NaN]", "not_json"),
    (b'{"inputs": []}', "empty_input"),
    (b'{"inputs": [1, 2, 3]}', "wrong_shape"),
    (b'{"inputs": [1, 2, "3", 4, 5, 6, 7, 8, 9, 10]}', "wrong_type"),
    (b'{"inputs": [1, 2, null, 4, 5, 6, 7, 8, 9, 10]}', "wrong_type"),
    (b'{"inputs": [[1, 2], [3]]}', "ragged"),
    (b'{"inputs": [1e39, 2, 3, 4, 5, 6, 7, 8, 9, 10]}', "out_of_range"),
    (b'{"inputs": {"y": [1]}}', "missing_input"),
    ('{"inputs": {"x": [1], "\u00fc": 2}}'.encode(), "unknown_input"),
]
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(("body", "code"), BAD)
def test_a_bad_request_is_a_400_that_says_why(server, body, code):
    answer = server.post("/predictions/control_flow", data=body, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["expected"]


def test_a_form_is_told_which_content_type_to_use(server):
    answer = server.post("/predictions/control_flow", data={"x": "1"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["expected"]


def test_an_unknown_model_is_a_404(server):
    assert server.post("/predictions/nobody", [1]).status_code == 404


def test_client_headers_neither_steer_nor_break(server):
    headers = {**JSON, "describe": "True", "explain": "True", "X-Correlation-Id": "mine-1"}
    answer = server.post("/predictions/control_flow", [0.5] * 10, headers=headers)
    assert answer.status_code == 200
    assert len(answer.json()["outputs"]["y"]) == 5
    assert answer.headers["x-correlation-id"] == "mine-1"


def test_sixty_four_at_once_good_and_bad(server, eager):
    names = ["digits", "activation_mlp", "control_flow", "dann"]
    pids = {name: server.worker_pids(name) for name in names} if server.management else {}
    generator = torch.Generator().manual_seed(0)
    jobs = []
    for number in range(512):
        name = names[number % len(names)]
        (example,) = eager.definitions[name].examples[0]
        if number % 3 == 2:
            jobs.append((name, None, BAD[number % len(BAD)]))
        else:
            rows = 1 + number % 3
            x = torch.rand(rows, *example.shape[1:], generator=generator)
            x = x * 16 if name in ("digits", "dann") else x * random.choice((1, -1))
            jobs.append((name, x, None))

    def post(job):
        name, x, bad = job
        if bad is not None:
            return server.post(f"/predictions/{name}", data=bad[0], headers=JSON)
        return server.post(f"/predictions/{name}", {"inputs": x.tolist()})

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(post, jobs))
    for (name, x, bad), answer in zip(jobs, answers, strict=True):
        if bad is not None:
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["message"]
        else:
            assert answer.status_code == 200, answer.text
            assert_same(answer.json(), eager(name, x))
    for name, before in pids.items():
        assert server.worker_pids(name) == before


def test_a_branch_answers_under_load_as_it_does_alone(server):
    inputs = [[sign * (1 + i / 100)] * 10 for i in range(64) for sign in (1, -1)]
    alone = [server.post("/predictions/control_flow", x).content for x in inputs]
    with ThreadPoolExecutor(32) as pool:
        together = list(
            pool.map(lambda x: server.post("/predictions/control_flow", x).content, inputs)
        )
    assert together == alone


def test_everyone_who_asks_gets_the_statistics_of_their_own_request(server, eager):
    module = eager.definitions["activation_mlp"].module
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(1 + n % 3, 16, generator=generator) * (1 + n) for n in range(96)]

    def post(numbered):
        number, x = numbered
        asking = {"X-Activations": "stats"} if number % 2 else {}
        return server.post("/predictions/activation_mlp", {"inputs": x.tolist()}, headers=asking)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(post, enumerate(inputs)))
    for number, (x, answer) in enumerate(zip(inputs, answers, strict=True)):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert_same(body, eager("activation_mlp", x))
        if number % 2 == 0:
            assert set(body) == {"outputs"}
            continue
        with torch.no_grad():
            relu = module.block[:2](x).numpy()
        found = body["activations"]["layers"]["block.1"]
        assert found["elements"] == relu.size
        np.testing.assert_allclose(found["mean"], relu.mean(), rtol=1e-5)
        np.testing.assert_allclose(found["std"], relu.std(), rtol=1e-5)
        np.testing.assert_allclose(found["max"], relu.max(), rtol=1e-5)
        np.testing.assert_allclose(found["zero_fraction"], (relu == 0).mean())
        assert len(found.get("rows", [None])) == len(x)


def test_what_cannot_be_asked_for_is_refused(server):
    headers = {"X-Activations": "stats; layers=nothing"}
    answer = server.post("/predictions/activation_mlp", [0.5] * 16, headers=headers)
    assert answer.status_code == 400
    assert "block.1" in answer.json()["error"]["expected"]
