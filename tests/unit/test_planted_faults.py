"""Faults planted in a real model are found from its activation log alone."""

import json
import zipfile

import pytest
import torch

from export.definition import from_model_file
from export.pipeline import export_model
from handlers.log_settings import LogSettings
from handlers.model import Model
from handlers.recorder import Recorder
from handlers.service import Request, Service
from handlers.units import UnitWatch
from models import data
from observe.baselines import read_baseline
from observe.findings import find
from observe.index import Index
from observe.queries import Window
from observe.reader import Reader
from tests.conftest import MODEL_FILES

LAYER = "features.3"  # the ReLU after the convolution that has the fault, features.2


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Export the digit classifier with a fault: all archives are of one name and version."""
    made = {}

    def export(fault):
        if fault not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("VITRINE_TEST_FAULT", fault)
                definition = from_model_file(MODEL_FILES / "faulty_digits.py")
            store = tmp_path_factory.mktemp(fault)
            made[fault] = export_model(definition, store, engine="torchscript").archive
        return made[fault]

    return export


@pytest.fixture(scope="module")
def logged(archive, tmp_path_factory):
    """Send held-out digits through the handler, one a request; the log in an index."""
    indices = {}

    def run(fault, *, shifted=False):
        if (fault, shifted) in indices:
            return indices[fault, shifted]
        folder = tmp_path_factory.mktemp("served")
        with zipfile.ZipFile(archive(fault)) as content:
            content.extractall(folder / "model")
        model = Model(folder / "model", torch.device("cpu"))
        recorder = Recorder(model.signature, LogSettings("sampled", 1.0, folder / "log"))
        service = Service(model, recorder)
        service.units = UnitWatch(model.layers, lambda: 0.0)  # looking takes no time
        images = data.split().held_out.images
        for number, image in enumerate(data.shift(images) if shifted else images):
            body = json.dumps({"inputs": image.tolist()}).encode()
            service.handle([Request(body, {}, f"r{number}")])
        recorder.close()
        index = indices[fault, shifted] = Index()
        assert Reader(folder / "log", index).read_all().records == len(images)
        return index

    yield run
    for index in indices.values():
        index.close()


@pytest.fixture(scope="module")
def found(archive, logged):
    """What is found, with the baseline of an archive, or with none."""

    def search(fault, baseline, *, shifted=False):
        known = None if baseline is None else read_baseline(archive(baseline))[0]
        return find(logged(fault, shifted=shifted), Window("faulty_digits"), known)

    return search


@pytest.mark.parametrize("baseline", ["none", None])
def test_a_healthy_model_is_not_accused(found, baseline):
    told = found("none", baseline)
    assert {one.severity for one in told} == {"note"}
    assert [one.kind for one in told if one.layer] == ["dead_units"]
    nothing = next(one for one in told if one.kind == "nothing")
    assert "450 requests, 4 layers (features.1 to softmax)" in nothing.text
    assert "the units of 3 layers in 450 rows" in nothing.text
    assert any(one.kind == "no_baseline" for one in told) == (baseline is None)


FAULTS = {
    "killed_layer": ("dead_layer", LAYER),
    "nan": ("non_finite", "features.2"),
    "infinite": ("non_finite", "features.2"),
    "exploding": ("exploding", LAYER),
    "shrunk": ("vanishing", LAYER),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("of", ["same", "good", "none"])
def test_a_fault_is_found_with_its_own_baseline_with_a_good_one_and_without(found, fault, of):
    told = found(fault, {"same": fault, "good": "none", "none": None}[of])
    wrong = [one for one in told if one.severity != "note"]
    assert [(one.kind, one.layer) for one in wrong] == [FAULTS[fault]]
    assert wrong[0].severity == "fault"
    assert wrong[0].requests == ("r449", "r448", "r447")
    assert told[0] == wrong[0]


def test_a_channel_killed_after_the_export_is_a_fault_and_drift_begins_there(found):
    told = found("killed_channel", "none")
    assert (told[0].severity, told[0].kind, told[0].layer) == ("fault", "dead_units", LAYER)
    assert "Unit 5 of features.3 never fired in 450 rows" in told[0].text
    assert "at export it fired in 100 % of rows" in told[0].text
    assert [one.severity for one in told[1:]] == ["note"] * len(told[1:])
    drift = next(one for one in told if one.kind == "drift")
    assert drift.layer == LAYER
    assert "up to features.1, is as at export" in drift.text


@pytest.mark.parametrize("baseline", ["killed_channel", None])
def test_a_channel_that_was_killed_before_stands_out_from_its_layer(found, baseline):
    told = found("killed_channel", baseline)
    wrong = [one for one in told if one.severity != "note"]
    assert [(one.severity, one.kind, one.layer) for one in wrong] == [
        ("warning", "dead_units", LAYER)
    ]
    assert wrong[0].text.startswith("1 of the 32 units of features.3 never fired in 450 rows")
    assert ("not at export either" in wrong[0].text) == (baseline is not None)


@pytest.mark.parametrize(
    ("baseline", "severity"), [("none", "fault"), ("hundredfold", "warning"), (None, "warning")]
)
def test_weights_a_hundred_times_as_large(found, baseline, severity):
    wrong = [one for one in found("hundredfold", baseline) if one.severity != "note"]
    assert [(one.severity, one.kind, one.layer) for one in wrong] == [
        (severity, "exploding", LAYER)
    ]


def test_other_inputs_are_told_from_a_fault_in_a_layer(found):
    told = found("none", "none", shifted=True)
    wrong = [one for one in told if one.severity != "note"]
    assert [(one.severity, one.kind, one.layer) for one in wrong] == [
        ("warning", "drift", "features.1")
    ]
    assert "The inputs changed" in wrong[0].text
