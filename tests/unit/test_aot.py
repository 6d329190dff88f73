"""Graphs compiled ahead of time: the same answers and statistics, without a compiler to serve."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import yaml

from engine import aot as loading
from export import aot
from export.errors import ExportError
from export.pipeline import export_model
from formats.certificate import Certificate
from formats.compiled import FILE_NAME, OBSERVED_FILE, PLAIN_FILE, Compiled
from formats.engines import AOT, TORCHSCRIPT
from handlers.model import Model
from handlers.service import Request, Service
from tests.conftest import ROOT
from tests.networks import Branching, ResidualNet, definition
from tests.unit.test_engines import assert_close

CPU = torch.device("cpu")
FILES = {FILE_NAME, PLAIN_FILE, OBSERVED_FILE}

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A residual network, every layer observed, compiled ahead of time and unpacked."""
    folder = tmp_path_factory.mktemp("aot")
    exported = export_model(definition(ResidualNet), folder, layers=("*",), engine=AOT)
    with zipfile.ZipFile(exported.archive) as content:
        content.extractall(folder / "unpacked")
    return folder / "unpacked"


def ask(model, *requests, header="stats"):
    bodies = [json.dumps({"inputs": x.tolist()}).encode() for x in requests]
    answers = Service(model).handle([Request(body, {"x-activations": header}) for body in bodies])
    assert [answer.status for answer in answers] == [200] * len(requests)
    return [json.loads(answer.body) for answer in answers]


@needs_compiler
def test_compiled_graphs_are_certified_and_travel(compiled):
    certificate = Certificate.read(compiled)
    [one] = [one for one in certificate.engines if one.name == AOT]
    assert one.offered, one.detail
    for words in ("fresh process", "NaN and infinities", "rows the same alone", "statistics"):
        assert words in one.detail
    assert set(certificate.files) >= FILES
    config = yaml.safe_load((compiled / "model-config.yaml").read_text())
    assert config["vitrine"]["engine"] == AOT


@needs_compiler
@pytest.mark.parametrize("header", ["stats", "raw; layers=*relu*"])
def test_compiled_graphs_answer_as_torchscript_does_in_any_batch(compiled, header):
    models = [Model(compiled, CPU, name) for name in (TORCHSCRIPT, AOT)]
    assert [model.engine for model in models] == [TORCHSCRIPT, AOT]
    generator = torch.Generator().manual_seed(1)
    requests = [torch.randn(rows, 1, 6, 6, generator=generator) for rows in (1, 2, 7, 1, 30)]
    wanted, found = (ask(model, *requests, header=header) for model in models)
    assert_close(found, wanted)


@needs_compiler
def test_compiled_graphs_let_nan_through(compiled):
    x = torch.full((2, 1, 6, 6), 3e38)
    flags = [
        ask(Model(compiled, CPU, name), x)[0]["activations"]["flags"]["non_finite"]
        for name in (TORCHSCRIPT, AOT)
    ]
    assert flags[0] is not None
    assert flags[0] == flags[1]


@needs_compiler
def test_serving_needs_neither_a_compiler_nor_the_compilers_code(compiled, tmp_path):
    program = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from handlers.model import Model\n"
        f"model = Model(Path({str(compiled)!r}), torch.device('cpu'), 'aot')\n"
        "print(model.engine, 'torch._inductor' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "CXX": "no-such-compiler", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [AOT, "False"]


@needs_compiler
def test_a_compiled_graph_that_cannot_be_loaded_is_left(compiled, monkeypatch, capsys):
    def broken(path):
        raise RuntimeError("cannot open shared object file")

    monkeypatch.setattr(loading, "_runner", broken)
    assert Model(compiled, CPU, AOT).engine == TORCHSCRIPT
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "engine aot is not used, torchscript serves: RuntimeError: cannot open shared object file"
    )


@needs_compiler
def test_a_module_that_branches_by_its_data_keeps_torchscript(tmp_path):
    exported = export_model(definition(Branching), tmp_path, engine=AOT)
    [one] = [one for one in exported.certificate.engines if one.name == AOT]
    assert not one.offered
    assert one.detail.startswith("it cannot be compiled: ")
    assert "\n" not in one.detail
    assert not FILES & set(exported.certificate.files)
    assert f"- `aot`: not offered: {one.detail}" in (tmp_path / "Branching.report.md").read_text()


def test_without_a_compiler_an_export_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ExportError, match="there is no 'no-such-compiler'"):
        export_model(definition(ResidualNet), tmp_path, engine=AOT)


def rows_of(kind):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(3, 8, 40, 30, generator=generator)
    return {
        "far from zero": 1000 + normal,
        "one outlier in front": torch.cat([torch.full((3, 1), 1e4), normal.flatten(1)], 1),
        "half of it zero": normal.relu(),
        "all the same": torch.full((3, 100), 0.1),
        "single values": normal[:, 0, 0, 0],
        "whole numbers": (normal * 3).to(torch.int64),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "far from zero",
        "one outlier in front",
        "half of it zero",
        "all the same",
        "single values",
        "whole numbers",
    ],
)
def test_statistics_for_the_compiler_are_numpys(kind):
    tensor = rows_of(kind)
    values = tensor.double().reshape(3, -1).numpy()
    found = [part.double().numpy() for part in aot._five(aot._rows_first(tensor, 0))]
    scale = max(1.0, np.abs(values).max())
    np.testing.assert_allclose(found[0], values.mean(1), atol=1e-7 * scale)
    np.testing.assert_allclose(np.sqrt(found[1]), values.std(1), atol=1e-6 * scale)
    np.testing.assert_array_equal(found[2], values.min(1).astype(found[2].dtype))
    np.testing.assert_array_equal(found[3], values.max(1).astype(found[3].dtype))
    np.testing.assert_allclose(found[4] ** 2, (values != 0).sum(1), rtol=1e-6)


def test_rows_behind_other_axes_come_first():
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(aot._rows_first(tensor, 2)[1].flatten(), tensor[:, :, 1].flatten())
    assert aot._rows_first(tensor, -1).shape == (1, 2, 3, 4)


def test_codes_are_those_of_a_compiled_hook(tmp_path):
    Compiled(("",), ((0, 0, 0), (2, 0, 0), (2, 1, 0)), 3).write(tmp_path)
    codes = Compiled.read(tmp_path).codes([4, 10, 4, 20, 1, 30])
    assert codes == [[0, 0, 1, 4, 10], [], [0, 0, 1, 4, 20, 1, 0, 1, 1, 30]]
