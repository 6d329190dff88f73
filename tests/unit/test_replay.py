"""Recorded requests on another archive: what differs is found, counted and named."""

import json
import math
import zipfile

import numpy as np
import pytest
import torch

from export.definition import from_model_file
from export.pipeline import export_model
from formats.statistics import LayerStatistics
from handlers.model import Model
from handlers.recorded import RequestRecording
from handlers.recording_settings import RecordingSettings
from handlers.service import Request, Service
from replay.__main__ import main
from replay.answers import Comparison
from replay.layers import LayerTotals
from replay.lines import Skipped, batches
from replay.subject import Answer

SOURCE = """
import torch
from torch import Tensor, nn

VERSION = "{version}"
INPUTS = ["{input}"]
OUTPUTS = ["scores"]
LABELS = {{"scores": ["a", "b", "c"]}}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.{relu} = nn.ReLU()
        self.last = nn.Linear(8, 3)

    def forward(self, {input}: Tensor) -> Tensor:
        return self.last(self.{relu}(self.first({input})))


def build():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        {change}
    return net


def examples():
    return [(torch.linspace(-1, 1, 4 * rows).reshape(rows, 4),) for rows in (1, 3)]
"""
KILL = "net.first.weight[3] = 0; net.first.bias[3] = -1; net.last.weight[2, 5] += 0.5"
VARIANTS = {
    "old": {"version": "1.0"},
    "killed": {"version": "2.0", "change": KILL},
    "renamed": {"version": "3.0", "input": "z", "relu": "gate"},
}
REQUESTS = 300


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    made = {}
    for name, variant in VARIANTS.items():
        folder = tmp_path_factory.mktemp(name)
        source = SOURCE.format(**{"input": "x", "relu": "relu", "change": "pass", **variant})
        (folder / "net.py").write_text(source)
        made[name] = export_model(from_model_file(folder / "net.py"), folder).archive
    return made


@pytest.fixture(scope="module")
def recorded(archives, tmp_path_factory):
    """300 requests in three forms, and two that are wrong."""
    folder = tmp_path_factory.mktemp("recorded")
    with zipfile.ZipFile(archives["old"]) as archive:
        archive.extractall(folder / "model")
    model = Model(folder / "model", torch.device("cpu"))
    settings = RecordingSettings(mode="sampled", rate=1.0, folder=folder)
    recording = RequestRecording(model.signature, settings)
    service = Service(model, recording=recording)
    values = np.random.default_rng(0).normal(size=(REQUESTS, 4)).astype(np.float32)
    sent = []
    for number, row in enumerate(values):
        if number % 3 == 0:
            sent.append(Request(row.tobytes(), {"content-type": "application/octet-stream"}))
        elif number % 3 == 1:
            sent.append(Request(json.dumps(row.tolist()).encode()))
        else:
            sent.append(Request(json.dumps({"instances": [row.tolist()] * 2}).encode()))
    sent += [Request(b"{"), Request(b"[[1, 2]]")]
    for start in range(0, len(sent), 16):
        batch = sent[start : start + 16]
        service.handle(
            [Request(one.body, one.headers, f"r{start + n}") for n, one in enumerate(batch)]
        )
    recording.close()
    return folder / "net.jsonl"


def run(recorded, archives, candidate, tmp_path, *options):
    report = tmp_path / "report.json"
    code = main([str(recorded), str(archives[candidate]), "--json", str(report), *options])
    return code, json.loads(report.read_text())


def test_the_same_archive_differs_in_nothing(recorded, archives, tmp_path, capsys):
    for options in ([], ["--against", str(archives["old"])]):
        code, report = run(recorded, archives, "old", tmp_path, "--tolerance", "1e-6", *options)
        assert (code, report["passed"]) == (0, True)
        assert report["requests"]["replayed"] == REQUESTS + 2
        assert report["requests"]["answered_by"] == {"1.0": REQUESTS + 2}
        assert report["answers"]["compared"] == REQUESTS
        assert report["requests"]["differing"] == 0
        assert "passed: 0 of 302 requests differ" in capsys.readouterr().out


def test_a_killed_unit_shows(recorded, archives, tmp_path, capsys):
    against = ["--against", str(archives["old"])]
    code, report = run(recorded, archives, "killed", tmp_path, *against)
    assert (code, report["passed"]) == (1, False)
    relu = report["layers"]["relu"]
    assert 3 in relu["dead_units"]["candidate"]
    assert 3 not in relu["dead_units"]["against"]
    assert relu["candidate"]["zero_fraction"] > relu["against"]["zero_fraction"]
    answers = report["answers"]
    assert 0 < answers["other_label"] <= answers["beyond_tolerance"] <= REQUESTS
    assert answers["largest_absolute"] > 0.01
    assert len(answers["worst"]) == 10
    printed = capsys.readouterr().out
    assert "died: 3" in printed
    assert answers["worst"][0]["request_id"] in printed
    assert "FAILED" in printed
    # Without the old archive the recorded answers say the same.
    _, alone = run(recorded, archives, "killed", tmp_path)
    assert alone["answers"]["other_label"] == answers["other_label"]
    assert alone["layers"]["relu"]["against"] is None


def test_statistics_are_those_of_all_requests_together(recorded, archives, tmp_path):
    _, report = run(recorded, archives, "old", tmp_path)
    definition = from_model_file(archives["old"].parent / "net.py")
    values = np.random.default_rng(0).normal(size=(REQUESTS, 4)).astype(np.float32)
    rows = torch.from_numpy(np.repeat(values, [2 if n % 3 == 2 else 1 for n in range(300)], axis=0))
    with torch.no_grad():
        wanted = definition.module.relu(definition.module.first(rows)).double().numpy()
    found = report["layers"]["relu"]["candidate"]
    assert found["elements"] == wanted.size
    np.testing.assert_allclose(found["mean"], wanted.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["std"], wanted.std(), rtol=1e-5)
    np.testing.assert_allclose(found["zero_fraction"], (wanted == 0).mean(), rtol=1e-9)


def test_how_many_may_differ_decides(recorded, archives, tmp_path):
    loose = ["--tolerance", "inf"]
    code, report = run(recorded, archives, "killed", tmp_path, *loose)
    assert code == 1
    share = report["requests"]["differing"] / report["requests"]["replayed"]
    assert report["requests"]["differing"] == report["answers"]["other_label"]
    assert run(recorded, archives, "killed", tmp_path, *loose, "--allow", str(share))[0] == 0


def test_requests_that_do_not_fit_are_said(recorded, archives, tmp_path, capsys):
    against = ["--against", str(archives["old"])]
    code, report = run(recorded, archives, "renamed", tmp_path, *against)
    # A bare value and rows without names fit any model with one input.
    assert code == 0
    assert list(report["layers"]) == ["gate", "last", "relu"]
    assert report["layers"]["gate"]["against"] is None
    assert report["layers"]["relu"]["candidate"] is None
    assert report["layers_appeared"] == ["gate"]
    assert report["layers_vanished"] == ["relu"]
    printed = capsys.readouterr().out
    assert "layers that appear: gate\n  layers that vanish: relu\n" in printed
    named = tmp_path / "named.jsonl"
    [line] = [one for one in recorded.read_text().splitlines() if '"r1"' in one]
    document = json.loads(line)
    document["body"] = json.dumps({"x": json.loads(document["body"])})
    named.write_text(json.dumps(document) + "\n")
    code, report = run(named, archives, "renamed", tmp_path)
    assert (code, report["answers"]["unfit"]) == (1, {"missing_input": 1})
    assert report["answers"]["worst"] == [{"request_id": "r1", "how": "error missing_input"}]


def test_lines_that_are_no_records_are_counted(recorded, archives, tmp_path, capsys):
    lines = recorded.read_bytes().splitlines(keepends=True)
    other = json.loads(lines[0]) | {"model": "other"}
    wrong = json.loads(lines[0])
    wrong["outputs"][0]["shape"] = [7, 7]
    vast = json.loads(lines[0])
    vast["outputs"][0]["shape"] = [2**70]
    (tmp_path / "a.jsonl").write_bytes(
        b"".join(
            [
                lines[0],
                b"garbage\n",
                b"\xff\xfe\x00\n",
                b"\n",
                b"[1, 2]\n",
                json.dumps(other).encode() + b"\n",
                json.dumps(wrong).encode() + b"\n",
                json.dumps(vast).encode() + b"\n",
                lines[1],
                lines[2][: len(lines[2]) // 2],
            ]
        )
    )
    code, report = run(tmp_path, archives, "old", tmp_path)
    assert code == 0
    assert report["requests"] == {
        "replayed": 2,
        "differing": 0,
        "answered_by": {"1.0": 2},
        "broken_lines": 6,
        "of_other_models": 1,
    }
    assert "skipped: 6 broken lines, 1 of other models" in capsys.readouterr().out


def test_nothing_to_replay_is_2(archives, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("garbage\n")
    assert main([str(tmp_path / "empty.jsonl"), str(archives["old"])]) == 2
    assert "no request to model 'net' (1 broken lines" in capsys.readouterr().err
    assert main([str(tmp_path / "none.jsonl"), str(archives["old"])]) == 2
    assert main([str(tmp_path / "empty.jsonl"), str(tmp_path / "none.mar")]) == 2


def test_a_long_line_does_not_fill_the_memory(tmp_path, monkeypatch, recorded):
    monkeypatch.setattr("replay.lines._LONGEST_LINE", 10_000)
    first = recorded.read_bytes().splitlines(keepends=True)[0]
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"x" * 95_000 + b"\n" + first)
    skipped = Skipped()
    [batch] = batches([path], "net", skipped)
    assert (len(batch), skipped.broken) == (1, 1)


def compared(reference, candidate, **options):
    comparison = Comparison(1e-3, {"y": ("a", "b")}, **options)
    comparison.add("i", reference, candidate)
    return comparison


def answer(*values, name="y"):
    return Answer({name: np.array([values], np.float32)})


def test_differences_of_values():
    assert compared(answer(1, 2), answer(1, 2.002)).beyond == 0
    far = compared(answer(1, 2), answer(1, 3))
    assert (far.beyond, far.absolute, far.relative, far.label) == (1, 1, 0.5, 0)
    assert compared(answer(1, 2), answer(2, 1)).label == 1
    nan, inf = math.nan, math.inf
    assert compared(answer(nan, inf), answer(nan, inf)).differing == 0
    for strange in (nan, inf):
        assert compared(answer(1, 2), answer(1, strange)).absolute == inf
        assert compared(answer(1, 2), answer(1, strange)).beyond == 1
    assert compared(answer(inf, 0), answer(-inf, 0)).beyond == 1


def test_labels_are_compared_by_name_where_both_are_known():
    swapped = {"y": ("b", "a")}
    assert compared(answer(1, 9), answer(9, 1), reference_labels=swapped).label == 0
    assert compared(answer(1, 9), answer(1, 9), reference_labels=swapped).label == 1


def test_outputs_that_come_and_go_and_change_shape():
    gone = compared(answer(1, 2), answer(1, 2, name="z"))
    assert (gone.missing, gone.added, gone.beyond) == ({"y"}, {"z"}, 1)
    assert compared(answer(1, 2), answer(1, 2, 3)).absolute == math.inf


def test_errors_that_come_and_go():
    wrong = Answer(error="wrong_shape", fits=False)
    assert compared(answer(1, 2), wrong).unfit == {"wrong_shape": 1}
    assert compared(answer(1, 2), Answer(error="internal")).appeared == {"internal": 1}
    vanished = compared(wrong, answer(1, 2))
    assert (vanished.vanished, vanished.differing) == ({"wrong_shape": 1}, 1)
    assert compared(wrong, wrong).differing == 0
    other = compared(wrong, Answer(error="ragged", fits=False))
    assert (other.changed, other.differing) == ({"wrong_shape → ragged": 1}, 0)


def test_the_worst_are_kept_in_order():
    comparison = Comparison(1e-3)
    for number in range(50):
        comparison.add(f"r{number}", answer(0, 0), answer(0, 1 + number % 25))
    ids = [one["request_id"] for one in comparison.worst]
    assert ids[:4] == ["r24", "r49", "r23", "r48"]
    assert len(ids) == 10


def test_totals_leave_out_what_is_not_finite_but_count_it():
    totals = LayerTotals()
    totals.add("a", LayerStatistics(2, 1.0, 1.0, 0.0, 2.0, 0.5, 0))
    totals.add("a", LayerStatistics(2, None, None, None, None, 0.0, 1))
    totals.add("a", LayerStatistics(4, 3.0, 0.0, 3.0, 3.0, 0.0, 0))
    found = totals.statistics()["a"]
    values = np.array([0, 2, 3, 3, 3, 3])
    assert (found.elements, found.non_finite, found.zero_fraction) == (8, 1, 1 / 8)
    np.testing.assert_allclose([found.mean, found.std], [values.mean(), values.std()])
    assert (found.min, found.max) == (0, 3)
