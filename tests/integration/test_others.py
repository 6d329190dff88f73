"""Models that the handler was not written for, over HTTP, without a change to it."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import torch

from export.definition import from_model_file
from formats import flatten
from tests.conftest import MODEL_FILES
from tests.integration.conftest import OTHERS


@pytest.mark.parametrize("name", OTHERS)
def test_other_peoples_models_answer_as_eager(others, name):
    definition = from_model_file(MODEL_FILES / f"{name}.py")
    inputs = [option.name for option in definition.inputs]
    for example in definition.examples:
        sent = {key: tensor.tolist() for key, tensor in zip(inputs, example, strict=True)}
        answer = others.post(f"/predictions/{name}", {"inputs": sent})
        assert answer.status_code == 200, answer.text
        with torch.no_grad():
            wanted = [leaf.float().numpy() for _, leaf in flatten(definition.module(*example))]
        got = list(answer.json()["outputs"].values())
        assert len(got) == len(wanted)
        for left, right in zip(got, wanted, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)


def test_requests_of_different_lengths_share_a_server(others):
    module = from_model_file(MODEL_FILES / "token_lstm.py").module
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, 50, (1 + i % 9,), generator=generator) for i in range(128)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(
            pool.map(lambda t: others.post("/predictions/token_lstm", t.tolist()), tokens)
        )
    for answer, own in zip(answers, tokens, strict=True):
        with torch.no_grad():
            wanted = module(own.unsqueeze(0))[0]
        np.testing.assert_allclose(answer.json()["outputs"]["logits"], wanted, rtol=1e-5, atol=1e-5)


def test_a_token_out_of_range_is_named(others):
    answer = others.post("/predictions/token_lstm", [1, 50])
    assert answer.status_code == 400
    assert "[1] is 50, outside [0, 49]" in answer.json()["error"]["message"]


def test_metrics_tell_of_each_part_of_a_layer(others):
    """TorchServe reads metrics as lines of text, which a name like `lstm:0` would break."""
    answer = others.post(
        "/predictions/lstm_states",
        {"inputs": {"x": torch.ones(2, 3, 4).tolist()}},
        headers={"X-Activations": "stats"},
    )
    assert answer.status_code == 200, answer.text
    keys = [key for key in answer.json()["activations"]["layers"] if ":" in key]
    assert keys
    deadline = time.monotonic() + 30
    while True:
        metrics = requests.get(f"{others.metrics}/metrics", timeout=10).text
        lines = [line for line in metrics.splitlines() if "vitrine_activation_mean{" in line]
        # Without the front it is Layer.
        told = [f'ayer="{key.replace(":", "/")}"' for key in keys]
        if all(any(label in line for line in lines) for label in told):
            break
        assert time.monotonic() < deadline, lines
        time.sleep(0.2)


def test_management_describes_the_signature(others):
    url = f"{others.management}/models/token_lstm?customized=true"
    [described] = requests.get(url, timeout=10).json()
    assert described["customizedMetadata"]["inputs"][0]["name"] == "tokens"
    assert described["batchSize"] == 16
