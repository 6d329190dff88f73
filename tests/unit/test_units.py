import json
import zipfile

import numpy as np
import pytest
import torch

from export.definition import from_model_file
from export.pipeline import export_model
from formats.layers import Layer
from handlers.model import Model
from handlers.service import Request, Service
from handlers.units import ROWS_NEEDED, UnitWatch
from tests.conftest import ROOT

RELU = Layer("relu", "ReLU", True, (0,), ("",))
KILLED = (3, 17)


@pytest.fixture
def served(tmp_path):
    definition = from_model_file(ROOT / "models" / "activation_mlp.py")

    def make(kill=()):
        with torch.no_grad():
            for unit in kill:
                definition.module.block[0].bias[unit] = -1e6
        archive = export_model(definition, tmp_path).archive
        with zipfile.ZipFile(archive) as content:
            content.extractall(tmp_path / "unpacked")
        service = Service(Model(tmp_path / "unpacked", torch.device("cpu")))
        service.units = UnitWatch(service._model.layers, lambda: 0.0)  # looking takes no time
        return service

    return make


def ask(service, rows):
    body = json.dumps({"inputs": torch.randn(rows, 16).tolist()}).encode()
    [answer] = service.handle([Request(body, {"x-activations": "stats"})])
    assert answer.status == 200


def test_units_killed_on_purpose_are_found(served):
    service = served(KILLED)
    for _ in range(40):
        ask(service, 50)
    found = service.units.report()["block.1"]
    assert set(KILLED) <= set(found["dead"])
    assert found["units"] == 32
    assert found["rows"] >= ROWS_NEEDED


def test_nobody_is_accused_on_few_rows(served):
    service = served()
    ask(service, 5)
    found = service.units.report()["block.1"]
    assert found["rows"] == 5
    assert found["dead"] is None


def test_channels_of_images_are_the_units():
    watch = UnitWatch([RELU])
    values = np.zeros((ROWS_NEEDED, 3, 4, 4))
    values[0, 0, 2, 2] = 1
    values[:, 2] = 1
    watch.look(lambda names: {"relu": values})
    found = watch.report()["relu"]
    assert found["dead"] == [1]
    assert found["active_fraction"] == pytest.approx((1 + ROWS_NEEDED) / ROWS_NEEDED / 3)


def test_looking_takes_a_twentieth_of_the_time_at_most():
    now = [0.0]
    watch = UnitWatch([RELU], clock=lambda: now[0])
    looks = 0

    def slow(names):
        nonlocal looks
        looks += 1
        now[0] += 1.0
        return {"relu": np.ones((1, 2))}

    while now[0] < 200:
        watch.look(slow)
        now[0] += 0.5
    assert 9 <= looks <= 12


def test_a_failure_to_look_harms_nothing():
    watch = UnitWatch([RELU])

    def fail(names):
        raise RuntimeError

    watch.look(fail)
    assert watch.report() == {}
    watch = UnitWatch([Layer("tanh", "Tanh", True, (0,), ("",))])
    watch.look(fail)
