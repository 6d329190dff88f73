"""How a layer's statistic is distributed over the rows of a window, against the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from formats.baseline import Baseline, Summary
from observe.deviation import summary_of
from observe.index import Index
from observe.queries import STATISTICS, Window
from observe.sketches import sketch

__all__ = ["Distribution", "distributions"]

_BINS: Final = 40
_SAMPLE: Final = 20_000
_FARTHEST: Final = 1e300


@dataclass(frozen=True)
class Distribution:
    """One statistic of one layer, a value for each row of each request.

    Attributes:
        key: the layer's.
        low: where the axis begins.
        high: where it ends.
        counts: rows in each of its equal parts; the last one has its upper end too.
        below: rows left of the axis.
        above: rows right of it.
        expected: share of the baseline's rows in each part; None where there is no baseline.
        mean: of the rows.
        summary: of the baseline, or None.
    """

    key: str
    low: float
    high: float
    counts: tuple[int, ...]
    below: int
    above: int
    expected: tuple[float, ...] | None
    mean: float
    summary: Summary | None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(self.counts) + self.below + self.above


def distributions(
    index: Index,
    window: Window,
    statistic: str,
    baseline: Baseline | None,
    keys: Sequence[str] | None = None,
) -> list[Distribution]:
    """Return the distribution of a statistic at each layer, in execution order.

    An axis spans all of the baseline, and the middle 98 % of the window's rows as far as that at
    most triples it. Values far away would hide the others: they count as below or above.

    Args:
        index: to ask.
        window: which records.
        statistic: one of `formats.baseline.STATISTICS`.
        baseline: to compare with, or None.
        keys: only these layers; None for all.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"{statistic} is no statistic; expected one of {', '.join(STATISTICS)}")
    owner, first = window.owner("l")
    condition, second = window.condition("v")
    source = (
        "FROM value v JOIN layer l ON l.id = v.layer "
        f"WHERE v.row_number >= 0 AND v.{statistic} IS NOT NULL AND {owner} AND {condition}"
    )
    parameters = [*first, *second]
    if keys is not None:
        source += " AND list_contains(?, l.key)"
        parameters.append(list(keys))
    every = max(1, len(index) // _SAMPLE)
    with index.cursor() as cursor:
        ranges = cursor.execute(
            f"SELECT l.key, avg(v.{statistic}), coalesce("
            # An axis needs no more; of all rows it takes longer than all the rest.
            f"approx_quantile(v.{statistic}, [0.01, 0.99]) FILTER (v.record % {every} = 0), "
            f"[min(v.{statistic}), max(v.{statistic})]) {source} GROUP BY l.key",
            parameters,
        ).fetchall()
        axes = {
            key: (mean, *_axis(low, high, summary_of(baseline, key, statistic)))
            for key, mean, (low, high) in ranges
        }
        if not axes:
            return []
        counted = cursor.execute(
            f"SELECT l.key, CASE WHEN v.{statistic} < a.low THEN -1 "
            f"WHEN v.{statistic} > a.high THEN {_BINS} ELSE least({_BINS - 1}, CAST(floor("
            f"(v.{statistic} - a.low) / (a.high - a.low) * {_BINS}) AS INTEGER)) END AS bin, "
            "count(*) "
            + source.replace(
                "WHERE",
                "JOIN (SELECT unnest(?) AS key, unnest(?) AS low, unnest(?) AS high) a "
                "ON a.key = l.key WHERE",
                1,
            )
            + " GROUP BY ALL",
            [
                list(axes),
                [low for _, low, _ in axes.values()],
                [high for _, _, high in axes.values()],
                *parameters,
            ],
        ).fetchall()
    bins: dict[str, list[int]] = {key: [0] * (_BINS + 2) for key in axes}
    for key, place, rows in counted:
        if key in bins:
            bins[key][place + 1] += rows
    found = []
    for key in index.order(window.model, window.version):
        if key in axes:
            mean, low, high = axes[key]
            summary = summary_of(baseline, key, statistic)
            below, *counts, above = bins[key]
            expected = None if summary is None else _expected(summary, low, high)
            found.append(
                Distribution(key, low, high, tuple(counts), below, above, expected, mean, summary)
            )
    return found


def _axis(low: float, high: float, summary: Summary | None) -> tuple[float, float]:
    if summary is not None:
        digest = sketch(summary.sketch)
        least, greatest = digest.get_min_value(), digest.get_max_value()
        room = (greatest - least) or abs(least) or 1.0
        low, high = (
            max(least - room, min(low, least)),
            min(greatest + room, max(high, greatest)),
        )
    # Beyond it, differences are not finite.
    low, high = max(low, -_FARTHEST), min(high, _FARTHEST)
    if not high > low:
        room = abs(low) * 0.05 or 0.5
        return low - room, high + room
    return low, high


def _expected(summary: Summary, low: float, high: float) -> tuple[float, ...]:
    digest = sketch(summary.sketch)
    edges = [low + (high - low) * number / _BINS for number in range(_BINS + 1)]
    if digest.get_min_value() == digest.get_max_value():
        # A digest of a single value has no ranks around it.
        value = digest.get_min_value()
        place = min(_BINS - 1, int((value - low) / (high - low) * _BINS))
        return tuple(float(number == place) for number in range(_BINS))
    ranks = [0.0, *(digest.get_rank(edge) for edge in edges[1:-1]), 1.0]
    return tuple(max(0.0, after - before) for before, after in pairwise(ranks))
