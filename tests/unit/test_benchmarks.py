"""The benchmarks run and say what they should; nothing here depends on how long they take."""

import json
import subprocess

import numpy as np
import pytest
import torch

from benchmarks import activations, binary, training
from tests.conftest import ROOT

TINY = activations.Settings(rounds=2, least_ms=0, pixels=32)


@pytest.fixture(scope="module")
def results():
    return {result.name: result for result in activations.run(["mlp8-all", "resnet18"], TINY)}


def test_every_variant_is_timed_in_every_round(results):
    for result in results.values():
        assert list(result.milliseconds) == list(activations.VARIANTS)
        assert all(len(times) == TINY.rounds for times in result.milliseconds.values())
        assert all(time > 0 for times in result.milliseconds.values() for time in times)


def test_the_layers_observed_are_those_meant(results):
    # 17 ReLUs and the head; 8 blocks of three.
    assert results["resnet18"].observed == 18
    assert results["mlp8-all"].observed == 24
    assert sum(isinstance(m, torch.nn.ReLU) for m in activations.ResNet18().modules()) == 17


def test_plain_and_observed_answers_agree(results):
    for result in results.values():
        assert result.agreement.holds
        assert result.agreement.answers.keys() == {"plain", "not asked", "asked", "eager", "onednn"}
        assert max(result.agreement.answers.values()) <= 1e-5


def test_answers_that_do_not_agree_are_told_apart():
    assert not activations.Agreement({"plain": 0.0, "asked": 1e-3}, 0.0).holds
    assert not activations.Agreement({"plain": 0.0, "asked": float("nan")}, 0.0).holds
    assert not activations.Agreement({"plain": 0.0}, float("inf")).holds


def test_derived_figures_are_taken_within_a_round():
    times = {
        "plain": [1.0, 2.0, 3.0],
        "not asked": [1.0, 2.0, 3.0],
        "asked": [1.5, 3.0, 4.5],
        "eager": [2.0, 2.0, 2.0],
        "eager, tutorial hooks": [4.0, 4.0, 4.0],
        "eager, same statistics": [6.0, 6.0, 6.0],
        "floor": [0.1, 0.2, 0.3],
    }
    result = activations.Result("n", "N", 1, 1, activations.Agreement({}, 0.0), times)
    figures = {name: spread.median for name, spread in activations.derived(result).items()}
    assert figures["asked_over_plain_percent"] == pytest.approx(50)
    assert figures["not_asked_over_plain_percent"] == pytest.approx(0)
    assert figures["added_over_added_eager"] == pytest.approx(0.25)
    assert figures["floor_percent_of_plain"] == pytest.approx(10)


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    threads = torch.get_num_threads()
    path = tmp_path / "found.json"
    options = ["--networks", "mlp", "--rounds", "2", "--least-ms", "0", "--json", str(path)]
    assert activations.main(options) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ")[1] for line in printed if line.startswith("| tutorial MLP")]
    assert rows[:-1] == list(activations.VARIANTS)
    assert rows[-1] == "3 / 6"
    assert any("agree within" in line for line in printed)
    written = json.loads(path.read_text())
    assert written["settings"]["threads"] == 1
    assert written["machine"]["torch"] == torch.__version__
    assert written["networks"][0]["medians_ms"].keys() == activations.VARIANTS.keys()
    assert torch.get_num_threads() == threads


def test_an_unknown_benchmark_is_refused():
    done = subprocess.run(
        [ROOT / "scripts" / "benchmark", "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert (
        done.stderr == "error: there is no benchmark 'nothing'; "
        "there are: activations binary drift growth observe scale serve training\n"
    )


def test_every_form_on_the_wire_is_the_same_image():
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    sent = binary.bodies(image)
    assert tuple(sent) == binary.FORMS
    times = binary.parse_times(sent, 1)
    assert all(len(own) == 1 and own[0] > 0 for own in times.values())
    table = binary.render(sent, times, times).splitlines()
    assert [row.split(" | ")[0] for row in table[2:]] == [f"| {form}" for form in binary.FORMS]


def test_a_step_of_training_is_timed_in_three_ways(capsys):
    options = ["--networks", "mlp", "digits", "--rounds", "2", "--least-ms", "0"]
    assert training.main(options) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "batch" in line]
    assert [row[:2] for row in rows] == [
        ["| 8-block MLP, batch 64", "32"],
        ["| digits CNN, batch 64", "10"],
    ]
    assert all("(×" in cell for row in rows for cell in row[3:])
