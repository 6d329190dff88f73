"""The baseline of a model: what its layers look like on the inputs it was built for."""

import base64
import json
import zipfile

import datasketches
import numpy as np
import pytest
import torch

from export.baseline import MOST_UNIT_ROWS
from export.definition import from_model_file
from export.errors import ExportError
from formats.baseline import STATISTICS, Baseline
from formats.document import FormatError
from tests.conftest import ROOT


@pytest.fixture
def unpacked(exported, tmp_path):
    with zipfile.ZipFile(exported("digits").archive) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_the_numbers_are_those_of_eager_hooks_on_the_calibration_inputs(unpacked):
    baseline = Baseline.read(unpacked)
    definition = from_model_file(ROOT / "models" / "digits.py")
    [(images,)] = definition.calibration
    assert (baseline.source, baseline.rows) == ("calibration", len(images))
    seen = []
    relu = definition.module.features[7]
    handle = relu.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        definition.module(images)
    handle.remove()
    values = seen[0].double().numpy()
    wanted = {
        "mean": values.mean(1),
        "std": values.std(1),
        "min": values.min(1),
        "max": values.max(1),
        "zero_fraction": (values == 0).mean(1),
    }
    for name in STATISTICS:
        summary = baseline.layers["features.7"][name]
        assert summary.rows == len(images)
        assert summary.mean == pytest.approx(wanted[name].mean(), rel=1e-4, abs=1e-5)
        assert summary.spread == pytest.approx(wanted[name].std(), rel=1e-4, abs=1e-5)
    sketch = datasketches.tdigest_double.deserialize(
        base64.b64decode(baseline.layers["features.7"]["mean"].sketch)
    )
    for quantile in (0.01, 0.25, 0.5, 0.75, 0.99):
        value = np.quantile(wanted["mean"], quantile)
        assert sketch.get_rank(value) == pytest.approx(quantile, abs=0.01)


def test_units_are_those_of_eager_hooks_in_rows_taken_evenly(unpacked):
    baseline = Baseline.read(unpacked)
    definition = from_model_file(ROOT / "models" / "digits.py")
    [(images,)] = definition.calibration
    chosen = images[:: -(-len(images) // MOST_UNIT_ROWS)]
    assert list(baseline.units) == ["features.1", "features.3", "features.7"]
    for key, fractions in baseline.units.items():
        place = int(key.removeprefix("features."))
        with torch.no_grad():
            output = definition.module.features[: place + 1](chosen.unsqueeze(1) / 8.0 - 1.0)
        active = (output != 0).reshape(*output.shape[:2], -1).any(dim=2).double().mean(dim=0)
        assert fractions == pytest.approx(active.tolist(), abs=2 / len(chosen))
    # Training killed some; no channel of a convolution is among them.
    assert 0.0 in baseline.units["features.7"]
    assert min(baseline.units["features.1"]) == 1.0


def test_a_baseline_of_before_units_were_kept_is_read(unpacked):
    file = unpacked / "baseline.json"
    fields = json.loads(file.read_text())
    units = fields.pop("units")
    file.write_text(json.dumps(fields))
    assert Baseline.read(unpacked).units == {}
    for damaged in (units | {"features.1": "x"}, units | {"features.1": 3}, [1]):
        file.write_text(json.dumps(fields | {"units": damaged}))
        with pytest.raises(FormatError, match=r"baseline\.json is damaged"):
            Baseline.read(unpacked)


def test_it_is_read_as_it_was_written(unpacked, tmp_path):
    baseline = Baseline.read(unpacked)
    (tmp_path / "again").mkdir()
    baseline.write(tmp_path / "again")
    assert Baseline.read(tmp_path / "again") == baseline
    (unpacked / "baseline.json").write_text(
        '{"format": "vitrine.baseline", "version": 1, "source": "examples", "rows": 1, "layers": 3}'
    )
    with pytest.raises(FormatError, match=r"baseline\.json is damaged"):
        Baseline.read(unpacked)


def test_calibration_inputs_must_be_like_the_examples(tmp_path):
    file = tmp_path / "m.py"
    file.write_text(
        "import torch\n"
        "def build():\n    return torch.nn.ReLU()\n"
        "def examples():\n    return [torch.ones(2, 3)]\n"
        "def calibration():\n    return [torch.ones(2, 3).double()]\n"
    )
    with pytest.raises(ExportError, match=r"calibration\(\) and examples\(\) differ"):
        from_model_file(file)
