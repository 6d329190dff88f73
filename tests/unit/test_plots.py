"""What is drawn of a log: cells, colours, histograms, lines."""

import pytest

from observe import queries
from observe.colours import shade
from observe.deviation import FAR, deviation, summary_of, within
from observe.distributions import distributions
from observe.heat import grid, thumbnail
from observe.index import Index
from observe.plots import sparkline
from observe.queries import Window
from observe.reader import Reader
from tests import activation_logs as logs

BASELINE = logs.baseline()
FAULTS = (
    logs.Fault("dead", "stem", 50, 80),
    logs.Fault("nan", "block.1.relu", 200, 210),
    logs.Fault("exploding", "block.0.relu", 250),
)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "digits.jsonl"
    logs.write(path, logs.records(300, faults=FAULTS, errors=[7]))
    made = Index()
    Reader(path, made).read_all()
    yield made
    made.close()


def test_a_cell_shows_what_is_broken_whatever_the_statistic(index):
    maps = queries.heatmaps(index, Window("digits"))
    for statistic in ("mean", "min", "non_finite"):
        scale = "count" if statistic == "non_finite" else "baseline"
        made = grid(maps[statistic], maps["non_finite"], BASELINE, scale)
        rows = {row.key: row.cells for row in made.rows}
        assert {cell.shade.split()[-1] for cell in rows["stem"]} >= {"dead"}
        assert any("bad" in cell.shade for cell in rows["block.1.relu"])
        assert not any("bad" in cell.shade for cell in rows["block.0.relu"])
    mean = grid(maps["mean"], maps["non_finite"], BASELINE, "baseline")
    exploded = {row.key: row.cells for row in mean.rows}["block.0.relu"]
    assert exploded[-1].shade == "z5"
    assert exploded[0].shade == "z0"


def test_deviations_are_in_the_baselines_spreads():
    summary = summary_of(BASELINE, "stem", "mean")
    assert deviation(summary.mean + 3 * summary.spread, summary) == pytest.approx(3)
    assert deviation(summary.mean - 1e9, summary) == -FAR
    assert deviation(None, summary) is None
    assert within(summary.mean, summary) == 0
    assert within(summary.mean + 50 * summary.spread, summary) > 40
    never = summary_of(BASELINE, "stem", "min")
    assert never.spread == 0
    assert deviation(0.0, never) == 0
    # A thousandth of the layer's magnitude, which is about 4.
    assert deviation(1.0, never) == pytest.approx(1000 / 4, rel=0.3)
    assert summary_of(BASELINE, "nobody", "min") is None
    assert [shade(spreads) for spreads in (0, 0.5, -0.6, 3, -8, 900)] == [0, 1, -1, 3, -5, 5]


def test_a_distribution_counts_every_row_once(index):
    window = Window("digits")
    for statistic in ("mean", "max"):
        rows = queries.rows_of(index, window, statistic)
        for shown in distributions(index, window, statistic, BASELINE):
            values = rows[shown.key]
            assert shown.rows == len(values)
            assert shown.below == (values < shown.low).sum()
            assert shown.above == (values > shown.high).sum()
            assert shown.mean == pytest.approx(values.mean())
            assert sum(shown.expected) == pytest.approx(1)


def test_a_small_picture_keeps_what_is_strange(index):
    maps = queries.heatmaps(index, Window("digits"))
    made = grid(maps["mean"], maps["non_finite"], BASELINE, "baseline")
    tall, wide, tiles = thumbnail(made, rows=2, columns=5)
    assert (tall, wide) == (2, 5)
    assert any("bad" in shade for *_, shade in tiles)
    covered = [(row, left + n) for row, left, width, _ in tiles for n in range(width)]
    assert len(covered) == len(set(covered)) == tall * wide


def test_a_sparkline_has_gaps_where_nothing_was_measured():
    assert sparkline([None, None]) == ""
    assert sparkline([1.0, 2.0, None, 3.0]) == "M0.0 19.0L33.3 10.0M100.0 1.0h0.1"
