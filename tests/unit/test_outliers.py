"""The out-of-distribution score of a request, and which requests it makes stand out."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import drift as benchmark
from benchmarks.drifting.inputs import strange
from benchmarks.drifting.roc import draw, scores, separate
from benchmarks.drifting.subject import Subject, baseline_of, rows
from benchmarks.drifting.windows import drawn
from export.baseline import summarise
from formats.baseline import STATISTICS, Baseline, Summary
from formats.score import CAP, away, scales, score
from models import data
from observe import outliers
from observe.index import Index
from observe.outliers import count_unusual, deviations, outlier, threshold, unusual
from observe.queries import Window, recent, request
from observe.sketches import values
from tests.drifting import indexed, unseen

DIGITS = Window("digits")


@pytest.fixture(scope="module")
def digits(exported):
    return Subject(exported("digits").archive)


def baseline(**layers):
    return Baseline(
        "calibration",
        100,
        {
            key: {name: Summary(100, *numbers, "") for name, numbers in statistics.items()}
            for key, statistics in layers.items()
        },
    )


KNOWN = baseline(
    a={"mean": (1.0, 0.5), "max": (4.0, 2.0)},
    b={"mean": (0.1, 0.0), "zero_fraction": (0.0, 0.0)},
)


def test_the_score_is_the_root_mean_square_of_capped_deviations():
    usual = {"a": {"mean": 1.0, "max": 4.0}}
    assert score(usual, KNOWN) == 0
    assert score({"a": {"mean": 2.0, "max": 4.0}}, KNOWN) == pytest.approx(math.sqrt(2**2 / 2))
    assert score({"a": {"mean": 2.0, "max": 1.0}}, KNOWN) == pytest.approx(
        math.sqrt((2**2 + 1.5**2) / 2)
    )
    assert score({"a": {"mean": 1e30, "max": 4.0}}, KNOWN) == pytest.approx(CAP / math.sqrt(2))
    assert score({"a": {"mean": -1e30, "max": math.inf}}, KNOWN) == CAP
    # What the baseline lacks does not count.
    assert score(usual | {"c": {"mean": 9.0}}, KNOWN) == 0
    assert score({"c": {"mean": 9.0}}, KNOWN) is None
    assert score({}, KNOWN) is None


def test_a_constant_has_a_floor_under_its_spread():
    # A softmax's mean: 0.1, but for rounding.
    assert score({"b": {"mean": 0.1 + 1e-8, "zero_fraction": 0.0}}, KNOWN) < 1e-3
    assert score({"b": {"mean": 0.2, "zero_fraction": 0.0}}, KNOWN) > CAP / 2
    assert score({"b": {"mean": 0.1, "zero_fraction": 0.5}}, KNOWN) > CAP / 2
    nothing = baseline(z={"mean": (0.0, 0.0)})
    assert score({"z": {"mean": 0.0}}, nothing) == 0
    assert score({"z": {"mean": 1e-30}}, nothing) == CAP
    assert away(-1.0, scales(nothing)["z"]["mean"]) == -math.inf


def test_what_is_not_finite_is_as_unusual_as_can_be():
    usual = {"a": {"mean": 1.0, "max": 4.0}}
    strange_one = {"mean": None, "zero_fraction": 0.0}
    assert score(usual | {"b": strange_one}, KNOWN) == CAP
    # An output without a value has nothing to be measured.
    assert score(usual | {"b": {"mean": None, "zero_fraction": None}}, KNOWN) == 0


def test_the_archive_keeps_the_scores_of_its_calibration_rows(digits):
    calibration = data.held_apart()[0].images
    own = scores(digits.records(calibration), digits.baseline)
    kept = digits.baseline.score
    assert kept.rows == len(calibration)
    assert kept.mean == pytest.approx(own.mean(), rel=1e-4)
    assert kept.spread == pytest.approx(own.std(), rel=1e-3)
    # The third greatest of 300.
    assert threshold(kept) == pytest.approx(np.sort(own)[-3], rel=0.02)


@pytest.mark.parametrize("model", benchmark.MODELS)
def test_strange_inputs_score_higher_than_usual_ones(exported, model):
    over, found = benchmark.roc(Subject(exported(model).archive))
    assert over <= 0.03
    assert found["shifted"].area > 0.99
    assert found["shifted"].found > 0.95
    for name, least in (("uniform", 0.98), ("gaussian", 0.98), ("blank", 0.95)):
        assert found[name].area > least, name
    # What it cannot see well is written down as well.
    assert found["noisy"].area < 0.9


def test_the_area_is_how_often_the_strange_one_scores_higher():
    summary = replace(KNOWN, score=baseline_summary([1.0] * 200))
    rng = np.random.default_rng(0)
    usual, other = rng.integers(0, 6, 50) / 2, rng.integers(2, 9, 40) / 2
    pairs = other[:, None] - usual[None]
    wanted = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert separate(usual, other, summary).area == pytest.approx(wanted)
    assert separate(usual, usual, summary).area == pytest.approx(0.5)
    assert separate(usual, other, summary).found == (other > 1).mean()


def test_the_curves_are_drawn(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    assert matplotlib
    summary = replace(KNOWN, score=baseline_summary([1.0] * 200))
    one = separate(np.array([1.0, 2]), np.array([2.0, 3]), summary)
    draw({"digits": {"shifted": one}, "dann": {"blank": one}}, tmp_path / "roc.png")
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


def baseline_summary(own):
    records = [{"x": {"mean": value}} for value in own]
    return summarise("examples", records).layers["x"]["mean"]


def test_the_threshold_holds_its_false_alarms():
    rng = np.random.default_rng(0)
    for rows_of_one, count in ((1, 24), (1, 99), (1, 300), (16, 300), (64, 1000)):
        over = 0
        for _ in range(150):
            limit = threshold(baseline_summary(rng.gamma(4, size=count)), rows_of_one)
            over += (rng.gamma(4, size=(40, rows_of_one)).max(axis=1) > limit).sum()
        assert over / 6000 <= 0.015, (rows_of_one, count)
    few = baseline_summary(rng.gamma(4, size=24))
    assert threshold(few) == pytest.approx(few.mean + 10 * few.spread)
    # Never less than what the calibration rows reached.
    assert threshold(few, 16) >= values(few)[-1]


def test_a_request_counts_as_its_most_unusual_row(digits):
    mixed = unseen()[:8].clone()
    mixed[5] = strange("shifted", mixed[5:6])[0]
    index = indexed(digits.lines(mixed))
    apart = [outlier(request(index, f"r{n}"), digits.baseline) for n in range(8)]
    together = indexed(digits.lines(mixed, 8))
    found = outlier(request(together, "r0"), digits.baseline)
    assert found.row == 5
    assert found.score == pytest.approx(apart[5].score, rel=1e-4)
    assert found.unusual
    assert found.threshold > apart[0].threshold
    assert found.share == 0
    assert 0 < apart[0].share <= 1
    assert outlier(request(index, "r1"), None) is None
    assert outlier(request(index, "r1"), replace(digits.baseline, score=None)) is None


def test_requests_of_many_rows_are_no_more_often_unusual(digits):
    generator = torch.Generator().manual_seed(0)
    images = unseen()[torch.randint(0, len(unseen()), (1600,), generator=generator)]
    assert count_unusual(indexed(digits.lines(images, 16)), DIGITS, digits.baseline, 500) <= 5
    single = count_unusual(indexed(digits.lines(unseen())), DIGITS, digits.baseline, 500)
    assert single <= 0.03 * len(unseen())


def test_a_request_that_is_not_finite_is_unusual(digits):
    line = json.loads(next(iter(digits.lines(unseen()[:1]))))
    line["layers"]["softmax"] |= {"mean": None, "std": None, "min": None, "non_finite": 10}
    index = indexed([json.dumps(line).encode()])
    found = outlier(request(index, "r0"), digits.baseline)
    assert (found.score, found.unusual) == (CAP, True)
    # Even where the threshold is out of reach.
    assert replace(found, threshold=9.0).unusual
    [(row, same)] = unusual(index, DIGITS, digits.baseline)
    assert (row.request_id, same.score) == ("r0", CAP)


def odd_lines(digits):
    """Lines of usual and strange requests, of one row and of several, some damaged."""
    rng = np.random.default_rng(0)
    images = torch.cat([unseen()[:40], strange("shifted", unseen()[:6]), unseen()[40:60]])
    for size in (1, 5):
        for number, line in enumerate(digits.lines(images, size)):
            record = json.loads(line)
            record["request_id"] = f"{size}-{number}"
            layers = list(record["layers"].values())
            if rng.random() < 0.15:
                chosen = layers[rng.integers(len(layers))]
                for one in (chosen, *chosen.get("rows", ())[:1]):
                    one.update(mean=None, max=None, non_finite=2)
            if rng.random() < 0.15:
                del record["layers"]["features.3"]
            if rng.random() < 0.1:
                for one in (layers[0], *layers[0].get("rows", ())):
                    one.update(dict.fromkeys(STATISTICS), elements=0)
            if rng.random() < 0.1:
                record["layers"]["unknown"] = layers[0]
            if rng.random() < 0.1:
                for one in layers:
                    one.pop("rows", None)
            yield json.dumps(record).encode()


def test_many_at_once_are_told_as_each_by_itself(digits):
    index = indexed(odd_lines(digits))
    by_one = {}
    for row in recent(index, DIGITS, 1000):
        found = outlier(request(index, row.request_id), digits.baseline)
        if found is not None and found.unusual:
            by_one[row.request_id] = found
    together = unusual(index, DIGITS, digits.baseline, 1000)
    assert len(together) == len(by_one) > 10
    assert {row.rows for row, _ in together} == {1, 5}
    for row, found in together:
        assert found.score == pytest.approx(by_one[row.request_id].score, rel=1e-12)
        assert replace(found, score=0.0) == replace(by_one[row.request_id], score=0.0)
    times = [(row.time, row.id) for row, _ in together]
    assert times == sorted(times, reverse=True)
    assert unusual(index, DIGITS, digits.baseline, 3) == together[:3]
    assert unusual(index, DIGITS, None) == []
    assert count_unusual(index, DIGITS, None, 500) is None
    assert unusual(Index(), DIGITS, digits.baseline) == []


def test_only_the_latest_requests_are_looked_at(digits, monkeypatch):
    usual, other = digits.records(unseen()), digits.records(strange("shifted", unseen()))
    index = Index()
    index.add(drawn(other, np.arange(50)))
    later = drawn(usual, np.arange(50))
    later.record["time"] = later.record["time"] + 1000
    index.add(later)
    few = count_unusual(index, DIGITS, digits.baseline, 50)
    assert few <= 2
    assert count_unusual(index, DIGITS, digits.baseline, 60) == few + 10
    assert len(unusual(index, DIGITS, digits.baseline, 1000)) == few + 50
    monkeypatch.setattr(outliers, "LATEST", 50)
    assert len(unusual(index, DIGITS, digits.baseline, 1000)) == few
    first = replace(DIGITS, until=min(later.record["time"].tolist()))
    assert len(unusual(index, first, digits.baseline, 7)) == 7


def test_deviations_are_in_the_baselines_spreads(digits):
    layers = {"a": {"mean": 2.0, "max": 0.0}, "b": {"mean": None, "zero_fraction": 0.0}, "c": {}}
    assert deviations(layers, KNOWN) == {
        "a": {"mean": 2.0, "max": -2.0},
        "b": {"mean": math.inf, "zero_fraction": 0.0},
    }
    [row] = rows(digits.records(unseen()[:1]))
    for key, statistics in deviations(row, digits.baseline).items():
        for name, z in statistics.items():
            summary = digits.baseline.layers[key][name]
            if summary.spread > 0.01:
                assert z == pytest.approx((row[key][name] - summary.mean) / summary.spread)


def test_the_scores_of_a_new_baseline_are_about_one(digits):
    made = baseline_of(digits.records(data.held_apart()[0].images))
    assert 0.5 < made.score.mean < 1.1
    assert made.score.mean == pytest.approx(digits.baseline.score.mean, rel=1e-4)
