"""Explanations over HTTP: at both paths, as the page prints them, and among predictions."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from captum.attr import Saliency

from export.definition import from_model_file
from tests.conftest import ROOT
from tests.readme import run_page


def test_both_paths_explain_and_predictions_stay_predictions(server):
    rows = (torch.rand(2, 8, 8) * 16).round().tolist()
    for path in ("/explanations/digits", "/v1/models/digits:explain", "/explanations/digits/1.0"):
        answer = server.post(path, {"instances": rows}, headers={"X-Explain": "saliency"})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["explanations"]) == 2
        assert answer.json()["gradients"]["layers"]
    assert "outputs" in server.post("/predictions/digits", {"inputs": rows}).json()
    answer = server.post("/explanations/digits", {"inputs": rows}, headers={"X-Explain": "shap"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_explanation")


def test_the_lines_of_the_page_work(server, tmp_path):
    roles = []
    for role, printed in run_page("explanations.md", server.url, tmp_path):
        roles.append(role)
        if role == "picture":
            assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
        elif role == "explain":
            assert json.loads(printed)["explanations"][0]["label"] == "7"
        else:
            layers = json.loads(printed)["gradients"]["layers"]
            turned = layers["features"]["mean"] / layers["reversal"]["mean"]
            np.testing.assert_allclose(turned, -0.3, rtol=1e-3)
    assert roles == ["explain", "picture", "reversal"]


def test_a_mixed_load_mixes_nothing_up(server):
    module = from_model_file(ROOT / "models" / "digits.py").module
    images = (torch.rand(48, 8, 8) * 16).round()
    with torch.no_grad():
        answers = module(images).numpy()
    targets = answers.argmax(1).tolist()
    wanted = Saliency(module).attribute(images.clone().requires_grad_(), target=targets)

    def ask(place):
        body = {"inputs": images[place].tolist()}
        if place % 2:
            answer = server.post("/predictions/digits", body)
            return answer.status_code, answer.json()["outputs"]["probabilities"]
        answer = server.post("/explanations/digits", body, headers={"X-Explain": "saliency"})
        [entry] = answer.json()["explanations"]
        assert entry["target"] == targets[place]
        return answer.status_code, entry["attributions"]["image"]

    with ThreadPoolExecutor(16) as pool:
        for place, (status, found) in enumerate(pool.map(ask, range(len(images)))):
            assert status == 200
            expected = answers[place] if place % 2 else wanted[place].detach().numpy()
            scale = float(abs(expected).max())
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)
