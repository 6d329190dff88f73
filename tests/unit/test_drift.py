"""Drift: what is the same does not alarm, what is not does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from benchmarks import drift as benchmark
from benchmarks.drifting.inputs import strange
from benchmarks.drifting.subject import FAULTS, Subject, baseline_of
from benchmarks.drifting.windows import alarms, drawn, merged, windows
from formats.baseline import STATISTICS, Baseline
from models import data
from observe.__main__ import main
from observe.drift import FALSE_ALARMS, LEAST_ROWS, SLACK, critical, distance, drift
from observe.index import Index
from observe.queries import Window
from observe.sketches import values
from tests.drifting import indexed, unseen

MANY = 100


@pytest.fixture(scope="module", params=benchmark.MODELS)
def subject(request, exported):
    return Subject(exported(request.param).archive)


@pytest.fixture(scope="module")
def digits(exported):
    return Subject(exported("digits").archive)


def found(index, baseline, model="digits", **options):
    return {one.key: one for one in drift(index, Window(model), baseline, **options)}


@pytest.mark.parametrize("sizes", [(24, 50), (300, 20), (137, 211)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_distance_is_that_of_kolmogorov_and_smirnov(sizes, ties):
    rng = np.random.default_rng(0)
    for shift in (0, 0.3, 5):
        ours, theirs = rng.normal(size=sizes[0]), rng.normal(shift, 2, size=sizes[1])
        if ties:
            ours, theirs = np.round(ours), np.round(theirs)
        wanted = ks_2samp(ours, theirs, method="asymp").statistic
        assert distance(ours, theirs, 0.0) == pytest.approx(wanted, abs=1e-12)


def test_a_constant_that_is_rounded_otherwise_has_not_moved():
    rng = np.random.default_rng(0)
    ours, theirs = 0.1 + 1e-9 * rng.random(500), 0.1 - 1e-8 * rng.random(300)
    assert distance(ours, theirs, 0.0) == 1
    assert distance(ours, theirs, 1e-6) == 0
    assert distance(ours + 1e-5, theirs, 1e-6) == 1
    assert distance(np.zeros(500), np.zeros(300), 0.0) == 0
    # Half of the rows are zero where none were.
    assert distance(np.repeat([0.0, 1.0], 50), np.ones(80), 1e-6) == pytest.approx(0.5)


@pytest.mark.parametrize(("rows", "baseline_rows"), [(20, 24), (50, 24), (200, 24), (50, 300)])
def test_the_threshold_holds_its_false_alarms_for_any_number_of_rows(rows, baseline_rows):
    rng = np.random.default_rng(0)
    limit = critical(rows, baseline_rows, 1)
    over = sum(
        distance(rng.random(rows), rng.random(baseline_rows), 0.0) > limit for _ in range(3000)
    )
    assert over / 3000 <= FALSE_ALARMS
    # Nor is it so high that nothing could reach it.
    assert distance(rng.random(rows) + 1, rng.random(baseline_rows), 0.0) > limit
    # Many tests share the false alarms; a window of any size needs more than the slack.
    assert critical(rows, baseline_rows, 100) > limit
    assert 0 < critical(10**9, 10**9, 100) < 0.001 < SLACK


def test_windows_of_usual_digits_do_not_alarm_more_than_once_in_a_hundred(subject):
    rng = np.random.default_rng(0)
    records = subject.records(unseen())
    for size in (50, 500):
        draws = rng.integers(0, len(unseen()), (MANY, size))
        assert alarms(records, draws, [subject.baseline]) <= FALSE_ALARMS


def test_a_baseline_of_few_rows_does_not_alarm_more_often(digits):
    rng = np.random.default_rng(0)
    records = digits.records(torch.cat([one.images for one in data.held_apart()]))
    order = rng.permuted(np.tile(np.arange(450), (MANY, 1)), axis=1)
    baselines = [baseline_of(drawn(records, one[:24])) for one in order]
    assert alarms(records, order[:, 24:224], baselines) <= FALSE_ALARMS
    shifted = digits.records(strange("shifted", unseen()))
    draws = rng.integers(0, len(unseen()), (20, 50))
    assert alarms(shifted, draws, baselines[:20]) == 1


def test_windows_of_shifted_digits_alarm_from_twenty_rows_on(subject):
    table = benchmark.detections({"shifted": subject}, MANY, (20, 200))
    assert min(table.lines["shifted"]) >= 0.95


def test_a_quarter_of_shifted_digits_is_seen_and_a_twentieth_is_not(subject):
    table = benchmark.mixtures(subject, 40, (500,), (0.05, 0.25))
    assert table.lines["5 %"][0] < 0.5
    assert table.lines["25 %"][0] >= 0.95


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_weights_is_seen_and_where_it_begins(exported, fault):
    broken = Subject(exported("digits").archive, fault)
    [layers] = windows(broken.records(unseen()), np.arange(150)[None], [broken.baseline])
    moved = [layer.key for layer in layers if layer.alarm]
    first = {"killed": "features.3", "scaled": "features.1", "exploding": "features.3"}
    assert moved[0] == first.get(fault, "features.7")


def test_layers_come_in_execution_order_with_the_worst_statistic(digits):
    index = indexed(digits.lines(strange("shifted", unseen())))
    layers = drift(index, Window("digits"), digits.baseline)
    assert [one.key for one in layers] == ["features.1", "features.3", "features.7", "softmax"]
    for layer in layers:
        assert [one.statistic for one in layer.distances] == list(STATISTICS)
        assert all(one.rows == len(unseen()) for one in layer.distances)
        margins = [one.distance - one.threshold for one in layer.distances]
        assert layer.worst == layer.distances[int(np.argmax(margins))]
        assert layer.alarm == any(one.distance > one.threshold for one in layer.distances)
    [minimum] = [one for one in layers[0].distances if one.statistic == "min"]
    assert (minimum.distance, minimum.alarm) == (0, False)


def test_the_latest_rows_count_and_only_those(digits):
    usual, other = digits.records(unseen()), digits.records(strange("shifted", unseen()))
    both = merged(usual, other)
    index = Index()
    index.add(drawn(both, np.arange(300)))
    assert all(layer.alarm for layer in found(index, digits.baseline, latest=150).values())
    window = Window("digits", "1.0", until=150)
    assert not any(layer.alarm for layer in drift(index, window, digits.baseline))
    assert found(index, digits.baseline, latest=40)["softmax"].worst.rows == 40


def test_too_few_rows_say_nothing(digits):
    lines = list(digits.lines(unseen()[:LEAST_ROWS]))
    assert found(indexed(lines[1:]), digits.baseline) == {}
    assert len(found(indexed(lines), digits.baseline)) == 4
    assert found(Index(), digits.baseline) == {}


def test_the_rows_of_a_request_count_one_by_one(digits):
    apart = found(indexed(digits.lines(unseen())), digits.baseline)
    together = found(indexed(digits.lines(unseen(), 16)), digits.baseline)
    assert apart.keys() == together.keys()
    for key, layer in apart.items():
        for one, other in zip(layer.distances, together[key].distances, strict=True):
            assert one.rows == other.rows == len(unseen())
            assert one.distance == pytest.approx(other.distance, abs=0.02)
    # Only the latest requests' rows, and no more than so many.
    assert (
        found(indexed(digits.lines(unseen(), 16)), digits.baseline, latest=25)["softmax"].worst.rows
        == 25
    )


def test_training_and_errors_are_no_traffic(digits):
    lines = [json.loads(line) for line in digits.lines(strange("shifted", unseen()))]
    training = [json.dumps(line | {"reason": "training"}).encode() for line in lines]
    assert found(indexed(training), digits.baseline) == {}
    usual = list(digits.lines(unseen()))
    bare = {key: value for key, value in lines[0].items() if key not in ("layers", "flags")}
    errors = [json.dumps(bare | {"error": "wrong_type", "reason": "error"}).encode()] * 2000
    layers = found(indexed([*usual, *training, *errors]), digits.baseline)
    assert {one.worst.rows for one in layers.values()} == {len(usual)}
    assert not any(one.alarm for one in layers.values())


def test_what_is_not_finite_or_not_known_is_left_out(digits):
    lines = [json.loads(line) for line in digits.lines(unseen())]
    for line in lines[:140]:
        line["layers"]["features.3"] |= {"mean": None, "std": None, "non_finite": 3}
        line["layers"]["new"] = line["layers"]["features.3"]
    layers = found(indexed(json.dumps(line).encode() for line in lines), digits.baseline)
    assert "new" not in layers
    # Ten rows are left of these two.
    assert {one.statistic for one in layers["features.3"].distances} == {
        "min", "max", "zero_fraction",
    }  # fmt: skip
    known = {"softmax": digits.baseline.layers["softmax"]}
    assert list(found(indexed(digits.lines(unseen())), replace(digits.baseline, layers=known))) == [
        "softmax"
    ]


def test_a_layer_in_a_branch_counts_the_rows_that_took_it(exported):
    subject = Subject(exported("control_flow").archive)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 10, generator=generator).abs()
    index = indexed(subject.lines(torch.cat([x[:55], -x[55:]])))
    layers = found(index, subject.baseline, "control_flow")
    taken = set(subject.baseline.layers)
    ran = {key: one.worst.rows for key, one in layers.items()}
    assert ran.keys() < taken
    assert 55 in ran.values()


def test_a_sketch_stands_for_the_values_it_was_made_of(digits):
    records = digits.records(data.held_apart()[0].images)
    for place, statistic in enumerate(STATISTICS):
        own = records.value[records.value_of[:, 1] == 1, 1 + place]
        stood = values(digits.baseline.layers["features.3"][statistic])
        assert len(stood) == len(own) == 300
        assert distance(own, stood, 1e-4) <= SLACK / 2
    few = baseline_of(drawn(records, np.arange(24)))
    own = np.sort(records.value[records.value_of[:, 1] == 1, 1][:24])
    assert values(few.layers["features.3"]["mean"]) == pytest.approx(own, rel=1e-12)


# The command


@pytest.fixture
def log(digits, exported, tmp_path):
    def write(*images):
        lines = [line for each in images for line in digits.lines(each)]
        path = tmp_path / "digits.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return ["drift", str(path), "--baseline", str(exported("digits").archive)]

    return write


def test_the_command_says_by_its_status_whether_something_drifted(log, capsys):
    assert main(log(unseen())) == 0
    assert "DRIFT" not in capsys.readouterr().out
    assert main(log(strange("shifted", unseen()))) == 1
    printed = capsys.readouterr().out
    assert printed.count("DRIFT") == 4
    assert "150 unusual requests" in printed
    assert main([*log(unseen()), "--latest", "19"]) == 2
    assert "too few records" in capsys.readouterr().err


def test_only_the_model_that_is_named_is_compared(log, capsys):
    command = log(strange("shifted", unseen()))
    assert main([*command, "--model", "digits"]) == 1
    capsys.readouterr()
    assert main([*command, "--model", "other"]) == 2
    told = capsys.readouterr()
    assert "DRIFT" not in told.out
    assert "too few records" in told.err
    with pytest.raises(SystemExit):
        main([*command, "--mod", "digits"])


def test_its_json_holds_every_distance(log, digits, capsys):
    images = strange("shifted", unseen())
    assert main([*log(images), "--json", "--latest", "100"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["alarm"] is True
    [model] = printed["models"]
    assert (model["model"], model["version"], model["outlier_requests"]) == ("digits", "1.0", 100)
    wanted = found(indexed(digits.lines(images)), digits.baseline, latest=100)
    assert [one["layer"] for one in model["layers"]] == list(wanted)
    for layer in model["layers"]:
        for one in wanted[layer["layer"]].distances:
            assert layer["statistics"][one.statistic] == {
                "distance": one.distance,
                "threshold": one.threshold,
                "rows": one.rows,
                "alarm": one.alarm,
            }


def test_a_model_without_a_baseline_cannot_be_told(log, tmp_path, capsys):
    command = log(unseen())[:2]
    (tmp_path / "store").mkdir()
    assert main([*command, "--model-store", str(tmp_path / "store")]) == 2
    assert "digits 1.0: no baseline" in capsys.readouterr().err


def test_a_baseline_can_be_read_that_has_no_scores(digits, tmp_path):
    old = replace(digits.baseline, score=None)
    old.write(tmp_path)
    document = json.loads((tmp_path / "baseline.json").read_text())
    del document["score"]
    (tmp_path / "baseline.json").write_text(json.dumps(document))
    assert Baseline.read(tmp_path) == old
