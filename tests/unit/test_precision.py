"""Weights and computation in bfloat16, by the user's choice, with what it costs on record."""

import json
import zipfile
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.cli import main
from export.definition import from_model_file
from export.errors import ExportError
from export.pipeline import export_model
from export.verify import verify
from formats.certificate import Certificate
from formats.layers import Layers
from handlers.model import Model
from handlers.service import Request, Service
from tests.conftest import model_file
from tests.networks import Recurrent, ResidualNet, define, definition

CPU = torch.device("cpu")


def lowered(own):
    return replace(own, precision="bfloat16")


@pytest.fixture
def archive(tmp_path):
    """Export a definition and return the unpacked folder."""

    def export(own, name="unpacked", **options):
        exported = export_model(own, tmp_path, **options)
        with zipfile.ZipFile(exported.archive) as content:
            content.extractall(tmp_path / name)
        return tmp_path / name

    return export


@pytest.mark.parametrize("kind", [ResidualNet, Recurrent])
def test_answers_and_layers_stay_what_they_were(kind, archive):
    own = definition(kind)
    plain, low = archive(own, "plain"), archive(lowered(own), "low")
    assert Layers.read(low).hooked == Layers.read(plain).hooked
    x = own.examples[0][0]
    [answer] = Service(Model(low, CPU)).handle(
        [Request(json.dumps({"inputs": x.tolist()}).encode(), {"x-activations": "stats"})]
    )
    [wanted] = Service(Model(plain, CPU)).handle(
        [Request(json.dumps({"inputs": x.tolist()}).encode(), {"x-activations": "stats"})]
    )
    found, exact = json.loads(answer.body), json.loads(wanted.body)
    np.testing.assert_allclose(found["outputs"]["output"], exact["outputs"]["output"], atol=0.05)
    assert found["outputs"]["output"] != exact["outputs"]["output"]
    layers = exact["activations"]["layers"]
    assert list(found["activations"]["layers"]) == list(layers)
    for name, record in found["activations"]["layers"].items():
        assert record["elements"] == layers[name]["elements"]
        for number in ("mean", "std", "min", "max"):
            assert record[number] == pytest.approx(layers[name][number], abs=0.05), (name, number)


def test_weights_are_bfloat16_and_channels_last_and_the_wire_is_float32(archive):
    own = definition(ResidualNet)
    folder = archive(lowered(own))
    module = torch.jit.load(str(folder / "model.pt"))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    kernels = [weight for weight in module.parameters() if weight.ndim == 4]
    assert kernels
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    assert module(own.examples[0][0]).dtype == torch.float32
    model = Model(folder, CPU)
    assert [spec.dtype for spec in model.signature.inputs] == ["float32"]
    assert [spec.dtype for spec in model.signature.outputs] == ["float32"]
    assert {parameter.dtype for parameter in own.module.parameters()} == {torch.float32}


def test_the_cost_stands_in_the_certificate_and_the_report(tmp_path):
    own = from_model_file(model_file("digits"))
    exported = export_model(lowered(own), tmp_path)
    precision = exported.certificate.precision
    assert precision.dtype == "bfloat16"
    assert precision.cases > len(own.examples)
    [cost] = precision.costs
    assert cost.output == "probabilities"
    # The examples are among the verified inputs.
    with zipfile.ZipFile(exported.archive) as content:
        content.extractall(tmp_path / "unpacked")
    frozen = torch.jit.freeze(torch.jit.load(str(tmp_path / "unpacked" / "model.pt")).eval())
    with torch.no_grad():
        gap = max((own.module(x) - frozen(x)).abs().max().item() for (x,) in own.examples)
    assert 0 < gap <= cost.max_absolute < 0.1
    assert 0 < cost.max_relative < 0.1
    assert 0 <= cost.changed_labels < 0.1
    assert Certificate.read(tmp_path / "unpacked").precision == precision
    report = (tmp_path / "digits.report.md").read_text()
    assert "- computed in bfloat16;" in report
    assert "of rows get another label" in report
    assert exported.certificate.tolerance == {"float32": (2e-2, 1e-2)}


def test_it_can_be_verified_again(tmp_path):
    archive = export_model(lowered(definition(ResidualNet)), tmp_path).archive
    verdicts = list(verify(archive, tmp_path / "again"))
    assert len(verdicts) == 8
    assert [verdict for verdict in verdicts if not verdict.held] == []


def test_a_module_as_it_was_given_has_no_cost(exported):
    assert exported("elementwise").certificate.precision is None


class Named(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.eye(4)


class Positions(nn.Module):
    """Counts in the dtype of its input, and bfloat16 has no 257."""

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(600, dtype=x.dtype)
        return x[:, :1] * (count.to(torch.int64) % 2)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Pair:
        return Pair(self.linear(x), x)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Named, "the module does not run in bfloat16: RuntimeError: expected"),
        (Positions, "in bfloat16 output 'output' moved by .*, more than rounding explains"),
        (Packs, "output 'first' is float32, and bfloat16 when computed in bfloat16"),
    ],
)
def test_a_module_that_does_not_work_in_bfloat16_is_refused(kind, words, tmp_path):
    own = define(kind, torch.rand(3, 4) + 1)
    export_model(own, tmp_path)
    with pytest.raises(ExportError, match=words):
        export_model(lowered(own), tmp_path / "none")


def test_a_trace_is_not_lowered(tmp_path):
    with pytest.raises(ExportError, match="a trace is not brought to bfloat16"):
        export_model(lowered(definition(ResidualNet)), tmp_path, "trace")


def test_a_model_file_and_the_command_line_can_ask_for_it(tmp_path, capsys):
    text = model_file("elementwise").read_text()
    (tmp_path / "small.py").write_text(f"{text}\nPRECISION = 'bfloat16'\n")
    assert from_model_file(tmp_path / "small.py").precision == "bfloat16"
    (tmp_path / "odd.py").write_text(f"{text}\nPRECISION = 'float4'\n")
    with pytest.raises(ExportError, match="PRECISION is 'float4'"):
        from_model_file(tmp_path / "odd.py")
    options = ["--precision", "bfloat16", "--model-store", str(tmp_path), "--engine", "torchscript"]
    assert main([str(model_file("elementwise")), *options]) == 0
    with zipfile.ZipFile(tmp_path / "elementwise.mar") as content:
        certificate = Certificate.parse(content.read("certificate.json"))
    assert certificate.precision is not None
