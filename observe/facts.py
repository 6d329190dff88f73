"""What the rules on a window of the log are about, in a few queries however many records it has."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from formats.baseline import Baseline, Summary
from observe import queries
from observe.index import Index
from observe.queries import UnitReport, Window

__all__ = ["RANGES", "Facts", "Flow", "LayerFacts", "NonFinite", "examples", "gather", "summary"]

_MEASURED_AT_MOST: Final = 50_000
"""Requests that a layer's usual size is taken from, evenly from all: logarithms take long."""
_EXAMPLES: Final = 3
RANGES: Final = ("mean", "std", "min", "max")


@dataclass(frozen=True)
class LayerFacts:
    """One layer over a window, a request counting once.

    Attributes:
        key: the layer's.
        place: its position in execution order.
        records: requests in which it was measured.
        dead: of these, those in which all of it was zero.
        non_finite: of these, those in which some value was NaN or infinite.
        std: the average of its standard deviation; None where it was never finite.
        zero_fraction: the average.
        usual_std: the geometric mean of its standard deviation where that is not zero, or None.
        usual_size: the geometric mean of its largest absolute value, likewise.
        largest: the largest absolute value of all; None where it was never finite.
        ranges: of `mean`, `std`, `min` and `max`, the least and the greatest over requests.
    """

    key: str
    place: int
    records: int
    dead: int
    non_finite: int
    std: float | None
    zero_fraction: float | None
    usual_std: float | None
    usual_size: float | None
    largest: float | None
    ranges: tuple[tuple[float | None, float | None], ...]

    @property
    def constant(self) -> bool:
        """Whether it looked the same in every request, up to rounding."""
        for least, greatest in self.ranges:
            if least is None or greatest is None:
                return False
            if greatest - least > 1e-5 * max(abs(least), abs(greatest)):
                return False
        return True

    @property
    def saturated(self) -> bool:
        """Whether all its values are 0 or 1, as a softmax's of too large ones, up to rounding."""
        (mean, _), (std, _), least, greatest = self.ranges
        ends = (*least, *(None if end is None else 1 - end for end in greatest))
        if mean is None or std is None or any(end is None or abs(end) > 1e-5 for end in ends):
            return False
        # Only then is the variance as large as this.
        return abs(std * std - mean * (1 - mean)) < 1e-4 * mean


@dataclass(frozen=True)
class NonFinite:
    """Requests in which `layer` was the first to make NaN or an infinity; None: the inputs had it.

    `since` is the time of the first, in milliseconds since 1970.
    """

    layer: str | None
    records: int
    since: int


@dataclass(frozen=True)
class Flow:
    """In how many requests a layer's gradient was measured, and vanished, and exploded."""

    key: str
    records: int
    vanishing: int
    exploding: int


@dataclass(frozen=True)
class Facts:
    """What a window of the log holds.

    Attributes:
        records: requests, answered or not.
        answered: those without an error.
        steps: those that are steps of training.
        errors: by code, how many ended in it, the most frequent first.
        non_finite: by the layer that made it, the most frequent first.
        layers: in execution order.
        flows: gradients, in execution order.
        units: how often units were active, in execution order.
    """

    records: int
    answered: int
    steps: int
    errors: dict[str, int] = field(default_factory=dict)
    non_finite: list[NonFinite] = field(default_factory=list)
    layers: list[LayerFacts] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    units: list[UnitReport] = field(default_factory=list)


def gather(index: Index, window: Window) -> Facts:
    """Ask the index for all of it."""
    owner, first = window.owner("r")
    condition, second = window.condition("r")
    where, given = f"{owner} AND {condition}", [*first, *second]
    with index.cursor() as cursor:
        counted = cursor.execute(
            "SELECT count(*), count(*) FILTER (r.error IS NULL), "
            f"count(*) FILTER (r.reason = 'training') FROM record r WHERE {where}",
            given,
        ).fetchone()
        assert counted is not None
        if not counted[0]:
            return Facts(0, 0, 0)
        errors = cursor.execute(
            f"SELECT r.error, count(*) FROM record r WHERE {where} AND r.error IS NOT NULL "
            "GROUP BY r.error ORDER BY 2 DESC, 1",
            given,
        ).fetchall()
        made = cursor.execute(
            "SELECT r.non_finite, count(*), min(r.time) FROM record r "
            f"WHERE {where} AND r.non_finite IS NOT NULL GROUP BY r.non_finite ORDER BY 2 DESC, 1",
            given,
        ).fetchall()
        order = index.order(window.model, window.version)
        layers = _layers(cursor, window, order, counted[1])
        if any(layer.non_finite for layer in layers):
            received = cursor.execute(
                "SELECT count(DISTINCT r.id), min(r.time) FROM value v "
                f"JOIN record r ON r.id = v.record WHERE {where} AND v.total AND v.non_finite > 0 "
                "AND r.non_finite IS NULL",
                given,
            ).fetchone()
            made += [(None, *received)] if received is not None and received[0] else []
        flows = _flows(cursor, window, order)
    return Facts(
        counted[0],
        counted[1],
        counted[2],
        errors=dict(errors),
        non_finite=[NonFinite(*one) for one in made],
        layers=layers,
        flows=flows,
        units=queries.units(index, window),
    )


def _layers(cursor: Any, window: Window, order: Sequence[str], answered: int) -> list[LayerFacts]:
    owner, first = window.owner("l")
    condition, second = window.condition("v")
    size = "greatest(abs(v.min), abs(v.max))"
    some = f"v.record % {max(1, answered // _MEASURED_AT_MOST)} = 0"
    ranges = ", ".join(f"min(v.{name}), max(v.{name})" for name in RANGES)
    found = cursor.execute(
        "SELECT l.key, count(*), count(*) FILTER (v.dead), count(*) FILTER (v.non_finite > 0), "
        "avg(v.std), avg(v.zero_fraction), "
        f"exp(avg(CASE WHEN v.std > 0 AND {some} THEN ln(v.std) END)), "
        f"exp(avg(CASE WHEN {size} > 0 AND {some} THEN ln({size}) END)), {ranges} "
        "FROM value v JOIN layer l ON l.id = v.layer "
        f"WHERE v.total AND {owner} AND {condition} GROUP BY l.key",
        [*first, *second],
    ).fetchall()
    by_key = {row[0]: row[1:] for row in found}
    layers = []
    for place, key in enumerate(key for key in order if key in by_key):
        records, dead, non_finite, std, zeros, usual_std, usual_size, *ends = by_key[key]
        pairs = tuple(zip(ends[::2], ends[1::2], strict=True))
        # An infinite end is NULL, the other one may be finite.
        largest = max((abs(end) for end in (ends[4], ends[7]) if end is not None), default=None)
        layers.append(
            LayerFacts(
                key,
                place,
                records,
                dead,
                non_finite,
                std,
                zeros,
                usual_std,
                usual_size,
                largest,
                pairs,
            )
        )
    return layers


def _flows(cursor: Any, window: Window, order: Sequence[str]) -> list[Flow]:
    owner, first = window.owner("l")
    condition, second = window.condition("g")
    found = cursor.execute(
        "SELECT l.key, count(*), count(*) FILTER (g.flag = 1), count(*) FILTER (g.flag = 2) "
        "FROM gradient g JOIN layer l ON l.id = g.layer "
        f"WHERE g.total AND {owner} AND {condition} GROUP BY l.key",
        [*first, *second],
    ).fetchall()
    by_key = {row[0]: Flow(*row) for row in found}
    return [by_key[key] for key in order if key in by_key]


def examples(
    index: Index, window: Window, condition: str, given: Sequence[Any] = (), table: str = ""
) -> tuple[str, ...]:
    """Return the ids of the latest requests for which something holds.

    Args:
        index: to ask.
        window: which records.
        condition: SQL on the record `r` and, where there is a `table`, on the layer's key `l.key`
            and its values `v`.
        given: parameters of the condition.
        table: "value", "gradient", or "" where the record tells enough.
    """
    owner, first = window.owner("l" if table else "r")
    bounds, second = window.condition("v" if table else "r")
    source = "record r"
    if table:
        source = (
            f"{table} v JOIN layer l ON l.id = v.layer AND v.total JOIN record r ON r.id = v.record"
        )
    time = "v.time" if table else "r.time"
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT r.request_id FROM {source} WHERE {owner} AND {bounds} AND {condition} "
            f"ORDER BY {time} DESC, r.id DESC LIMIT {_EXAMPLES}",
            [*first, *second, *given],
        ).fetchall()
    return tuple(row[0] for row in found)


def summary(baseline: Baseline | None, key: str, statistic: str) -> Summary | None:
    """Return what a layer's statistic was on the calibration inputs, where that is known."""
    return None if baseline is None else baseline.layers.get(key, {}).get(statistic)
