"""Engines beside the frozen TorchScript graph: certified, chosen, and left where they fail."""

import json
import zipfile

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import engine
from engine import make
from engine.processor import describe
from export import engines, parity, timing
from export.pipeline import export_model
from export.timing import Timing, fastest, sizes_of, time_archive
from export.work import count
from formats.certificate import Batching, Certificate
from formats.engines import ONEDNN, TORCHSCRIPT
from formats.layers import Layers
from formats.workload import is_large
from handlers import engines as handler_engines
from handlers import model as handler_model
from handlers.engines import use_engine
from handlers.model import Model
from handlers.service import Request, Service
from tests.networks import (
    Branching,
    Recurrent,
    ResidualNet,
    define,
    definition,
)

CPU = torch.device("cpu")
HARMLESS = {"max_difference": 0.0, "detail": "", "offered": True}


class WholeNumbers(nn.Module):
    """ReLU of whole numbers, which oneDNN's graph answers as float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


def whole_numbers():
    return define(WholeNumbers, torch.tensor([[1, -2], [3, 4]]))


def unpacked(archive, folder):
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder


@pytest.fixture
def archive(tmp_path):
    """Export a definition, all layers observed, and return the unpacked folder."""

    def export(own, **options):
        exported = export_model(own, tmp_path, **options)
        return unpacked(exported.archive, tmp_path / "unpacked")

    return export


def config(folder):
    return yaml.safe_load((folder / "model-config.yaml").read_text())["vitrine"]


def ask(model, x, **headers):
    [answer] = Service(model).handle(
        [Request(json.dumps({"inputs": x.tolist()}).encode(), headers)]
    )
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def test_onednn_lets_nan_through_where_its_own_relu_does_not():
    module = torch.jit.script(definition(ResidualNet).module)
    x = torch.randn(3, 1, 6, 6)
    x[1, 0, 2, 3] = torch.nan
    with torch.no_grad():
        wanted = make(TORCHSCRIPT, module, None).plain(x)
        found = make(ONEDNN, module, None).plain(x)
        hidden = torch.jit.optimize_for_inference(torch.jit.freeze(module))(x)
    assert wanted[1].isnan().any()
    assert torch.equal(wanted.isnan(), found.isnan())
    assert not hidden.isnan().any(), "torch mended this: engine/onednn.py need not rewrite ReLU"
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_the_certificate_says_what_was_found_of_an_engine(archive):
    folder = archive(definition(ResidualNet), engine=ONEDNN)
    certificate = Certificate.read(folder)
    [one] = certificate.engines
    assert (one.name, one.offered) == (ONEDNN, True)
    assert 0 <= one.max_difference < 1e-3
    for words in ("fresh process", "NaN and infinities", "rows the same alone", "statistics"):
        assert words in one.detail
    assert certificate.versions["processor"] == engine.processor()
    assert config(folder)["engine"] == ONEDNN


def test_an_engine_that_answers_otherwise_is_not_offered(archive, tmp_path, capsys):
    folder = archive(whole_numbers(), engine=ONEDNN)
    [one] = Certificate.read(folder).engines
    assert not one.offered
    assert "int64" in one.detail
    assert "float32" in one.detail
    assert config(folder)["engine"] == TORCHSCRIPT
    report = (tmp_path / "WholeNumbers.report.md").read_text()
    assert "- `onednn`: not offered:" in report
    assert "- `torchscript` serves" in report
    assert Model(folder, CPU, ONEDNN).engine == TORCHSCRIPT
    assert "it was not certified (" in capsys.readouterr().err


def hides_nan(made):
    return lambda *inputs: made.plain(*inputs).nan_to_num()


def mixes_rows(made):
    return lambda x: made.plain(x) + (0.1 if len(x) == 5 else 0)


@pytest.mark.parametrize(
    ("spoilt", "words"), [(hides_nan, "NaN or infinity"), (mixes_rows, "not independent")]
)
def test_an_engine_that_is_wrong_beside_the_cases_is_not_offered(
    spoilt, words, archive, monkeypatch
):
    def wrong(name, module, chosen, folder=None):
        made = make(name, module, chosen)
        if name == TORCHSCRIPT:
            return made
        return engine.Engine(name, spoilt(made), made.summary)

    monkeypatch.setattr(engines, "make", wrong)
    [one] = Certificate.read(archive(definition(ResidualNet))).engines
    assert not one.offered
    assert words in one.detail


def test_an_engine_with_other_statistics_is_not_offered(archive, monkeypatch):
    def wrong(name, module, chosen, folder=None):
        made = make(name, module, chosen)

        def summary(*inputs):
            result, codes, joined = made.summary(*inputs)
            return result, codes, joined * 1.001

        return engine.Engine(name, made.plain, summary)

    monkeypatch.setattr(engines, "make", wrong)
    [one] = Certificate.read(archive(definition(ResidualNet))).engines
    assert not one.offered
    assert "statistics of layer" in one.detail


def test_an_engine_that_ends_the_process_takes_nothing_else_with_it(archive, tmp_path, monkeypatch):
    program = tmp_path / "export" / "reload.py"
    program.parent.mkdir()
    program.write_text(
        "import os, runpy, sys\n"
        f"real = runpy.run_path({str(parity._PROGRAM)!r})\n"
        f"real['main']({str(parity._PROGRAM.parent.parent)!r}, *sys.argv[2:5])\n"
        "os.write(2, b'Illegal instruction')\n"
        "os._exit(132)\n"
    )
    monkeypatch.setattr(parity, "_PROGRAM", program)
    certificate = Certificate.read(archive(definition(Branching)))
    assert all(check.passed for check in certificate.checks)
    [one] = certificate.engines
    assert not one.offered
    assert "Illegal instruction" in one.detail


@pytest.mark.parametrize("kind", [ResidualNet, Recurrent, Branching])
def test_looking_inside_is_the_same_under_every_engine(kind, archive):
    own = definition(kind)
    folder = archive(own, layers=("*",))
    names = ",".join(layer.name for layer in Layers.read(folder).hooked)
    models = [Model(folder, CPU, name) for name in (TORCHSCRIPT, ONEDNN)]
    assert [model.engine for model in models] == [TORCHSCRIPT, ONEDNN]
    x = own.examples[0][0]
    for header in ("stats", f"raw; layers={names}"):
        wanted, found = (ask(model, x, **{"x-activations": header}) for model in models)
        assert_close(found, wanted)


def assert_close(found, wanted):
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            assert_close(found[name], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    else:
        assert found == wanted


def test_a_nan_is_found_in_the_layer_that_made_it_under_every_engine(archive):
    own = definition(ResidualNet)
    folder = archive(own, layers=("*",))
    x = own.examples[0][0].clone()
    x[:] = 3e38
    flags = [
        ask(Model(folder, CPU, name), x, **{"x-activations": "stats"})["activations"]["flags"]
        for name in (TORCHSCRIPT, ONEDNN)
    ]
    assert flags[0]["non_finite"] is not None
    assert flags[0]["non_finite"] == flags[1]["non_finite"]


def test_an_engine_is_left_on_another_processor(archive, monkeypatch, capsys):
    folder = archive(definition(Branching))
    monkeypatch.setattr(handler_engines, "processor", lambda: "Abacus (beads)")
    assert Model(folder, CPU, ONEDNN).engine == TORCHSCRIPT
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "vitrine: model Branching: engine onednn is not used, torchscript serves: it was certified "
        f"on another processor: {engine.processor()}; this is Abacus (beads)"
    )


def test_an_engine_is_left_under_another_torch(archive, monkeypatch, capsys):
    folder = archive(definition(Branching))
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert Model(folder, CPU, ONEDNN).engine == TORCHSCRIPT
    assert "it was certified with torch" in capsys.readouterr().err


def raises(name, module, chosen, folder=None):
    if name == TORCHSCRIPT:
        return make(name, module, chosen)
    raise RuntimeError("first line\nno such primitive\n")


def moves(name, module, chosen, folder=None):
    made = make(name, module, chosen)
    if name == TORCHSCRIPT:
        return made
    return engine.Engine(name, lambda *inputs: made.plain(*inputs) + 0.01, made.summary)


def reshapes(name, module, chosen, folder=None):
    made = make(name, module, chosen)
    if name == TORCHSCRIPT:
        return made
    return engine.Engine(name, lambda *inputs: made.plain(*inputs)[:, :1], made.summary)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (raises, "RuntimeError: no such primitive"),
        (moves, "output 0 of the warm-up example moved by 0.01"),
        (reshapes, "output 0 of the warm-up example is float32[1, 1], not float32[1, 4]"),
    ],
)
def test_an_engine_that_fails_its_warm_up_is_left(archive, monkeypatch, capsys, broken, why):
    own = definition(Branching)
    folder = archive(own)
    x = own.examples[0][0]
    wanted = ask(Model(folder, CPU), x)
    monkeypatch.setattr(handler_model, "make", broken)
    model = Model(folder, CPU, ONEDNN)
    assert model.engine == TORCHSCRIPT
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(f"torchscript serves: {why}")
    assert ask(model, x) == wanted


def test_the_environment_goes_before_the_archive(monkeypatch):
    monkeypatch.delenv("VITRINE_ENGINE", raising=False)
    assert use_engine(None) == TORCHSCRIPT
    assert use_engine(ONEDNN) == ONEDNN
    monkeypatch.setenv("VITRINE_ENGINE", TORCHSCRIPT)
    assert use_engine(ONEDNN) == TORCHSCRIPT
    monkeypatch.setenv("VITRINE_ENGINE", "steam")
    with pytest.raises(ValueError, match=r"VITRINE_ENGINE is 'steam'; expected one of torchscript"):
        use_engine(ONEDNN)
    monkeypatch.delenv("VITRINE_ENGINE")
    with pytest.raises(ValueError, match="vitrine: engine is 7"):
        use_engine(7)


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ({1: 1.0, 8: 0.9}, ONEDNN),  # 5.4 %
        ({1: 1.0, 8: 0.92}, TORCHSCRIPT),  # 4.3 %
        ({1: 2.0, 8: 0.6}, TORCHSCRIPT),
        ({1: 1.5, 8: 0.5}, ONEDNN),
    ],
)
def test_the_fastest_must_gain_five_percent_over_all_sizes(times, wanted):
    base = Timing(TORCHSCRIPT, {1: 1.0, 8: 1.0})
    assert fastest([base, Timing(ONEDNN, times)]) == wanted
    assert fastest([base]) == TORCHSCRIPT


def test_sizes_are_those_that_may_be_served(exported):
    signature = exported("elementwise").signature
    assert sizes_of(signature, Batching(True, 64, "")) == (1, 8)
    assert sizes_of(signature, Batching(True, 3, "")) == (1, 3)
    assert sizes_of(signature, Batching(False, 1, "")) == (1,)


def test_the_certified_engines_of_an_archive_are_timed(archive):
    folder = archive(definition(ResidualNet))
    timings = time_archive(folder, (1, 2), seconds=0.01)
    assert [one.engine for one in timings] == [TORCHSCRIPT, ONEDNN]
    assert all(list(one.milliseconds) == [1, 2] for one in timings)
    assert all(own > 0 for one in timings for own in one.milliseconds.values())


def test_an_export_that_measures_serves_with_the_fastest(archive, tmp_path, monkeypatch):
    slow, fast = Timing(TORCHSCRIPT, {1: 2.0, 8: 4.0}), Timing(ONEDNN, {1: 1.0, 8: 2.0})
    monkeypatch.setattr(timing, "time_calls", lambda *_, **__: [slow, fast])
    folder = archive(definition(ResidualNet), engine="fastest")
    assert config(folder)["engine"] == ONEDNN
    report = (tmp_path / "ResidualNet.report.md").read_text()
    assert "- `onednn` takes 1 ms for 1 row, 2 ms for 8 rows: 2.00 times as fast as" in report
    assert "- `onednn` serves, as measured here" in report
    # The figures are not in the archive, so that the same export is the same bytes.
    assert b"measured here" not in (folder / "certificate.json").read_bytes()


class Wide(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean(dim=[2, 3])


@pytest.mark.parametrize(("channels", "wanted"), [(2, TORCHSCRIPT), (40, ONEDNN)])
def test_without_a_wish_large_convolutions_are_onednns(archive, channels, wanted):
    # 40 channels: 2 x 9 x 40 x 40 x 32 x 32 = 29.5 million operations a row.
    own = define(lambda: Wide(channels), torch.randn(2, channels, 32, 32))
    assert count(own).convolves_much == (wanted == ONEDNN)
    assert count(own).operations == count(own).convolutions == 2 * 9 * channels**2 * 32 * 32
    assert config(archive(own))["engine"] == wanted


@pytest.mark.parametrize(("side", "size", "delay"), [(32, 16, 1), (90, 4, 1)])
def test_a_model_that_computes_much_has_small_batches_that_wait_longer(archive, side, size, delay):
    own = define(lambda: Wide(40), torch.randn(2, 40, side, side))
    folder = archive(own)
    # 29.5 million operations a row, and 233 million: 2.3 ms of a core.
    operations = 2 * 9 * 40 * 40 * side * side
    written = yaml.safe_load((folder / "model-config.yaml").read_text())
    assert written["vitrine"]["operations_per_row"] == operations
    assert (written["batchSize"], written["maxBatchDelay"]) == (size, delay)
    assert is_large(written) == (side > 32)
    assert "minWorkers" not in written


def test_a_processor_is_known_by_its_model_and_extensions():
    intel = "processor : 0\nmodel name\t: Xeon 9\nflags\t\t: fpu avx2 smep avx512f sse2\n"
    assert describe(f"{intel}\n{intel}") == "Xeon 9 (avx2 avx512f)"
    arm = "processor\t: 0\nFeatures\t: fp asimd sve sme\nCPU part\t: 0xd40\n"
    assert describe(arm) == "0xd40 (asimd sme sve)"


def test_answers_are_apart_beyond_the_tolerance_only():
    tolerance = {"float32": (1e-5, 1e-5)}
    one = np.array([1.0, np.nan, 1000.0], np.float32)
    assert not handler_engines.apart([one], [one + np.float32(5e-3)], tolerance)
    assert "moved by 0.05" in handler_engines.apart([one], [one + np.float32(5e-2)], tolerance)
    whole = np.array([1, 2])
    assert handler_engines.apart([whole], [whole + 1], tolerance)
