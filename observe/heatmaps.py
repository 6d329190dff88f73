"""Heat maps: one statistic of each layer against time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from observe.index import Index
from observe.layers import STATISTICS, TOGETHER
from observe.window import Window

__all__ = ["GRADIENT_STATISTICS", "Heatmap", "gradient_heatmap", "heatmap", "heatmaps"]

GRADIENT_STATISTICS: Final = ("norm", "non_finite")

_WIDTHS: Final = tuple(
    unit * factor
    for unit, factors in (
        (1, (1, 2, 5, 10, 20, 50, 100, 200, 500)),
        (1_000, (1, 2, 5, 10, 15, 30)),
        (60_000, (1, 2, 5, 10, 15, 30)),
        (3_600_000, (1, 2, 3, 6, 12)),
        (86_400_000, (1, 2, 7, 14, 28, 91, 364, 3_640)),
    )
    for factor in factors
)
"""Widths of a column that a person can read, in milliseconds."""


@dataclass(frozen=True)
class Heatmap:
    """One statistic of each layer against time.

    Attributes:
        statistic: which.
        layers: keys in execution order: the rows.
        starts: where each column begins, milliseconds since 1970.
        width: of a column, milliseconds.
        values: of each layer, of each column; None where there was nothing finite.
        records: requests in each column.
        measured: of each layer, of each column: requests that it was measured in.
        flagged: of these, those in which it was all zeros, or its gradient vanished or exploded.
    """

    statistic: str
    layers: list[str]
    starts: list[int]
    width: int
    values: list[list[float | None]]
    records: list[int]
    measured: list[list[int]] = field(default_factory=list)
    flagged: list[list[int]] = field(default_factory=list)


def heatmap(index: Index, window: Window, statistic: str, columns: int = 60) -> Heatmap:
    """Return one statistic of each layer against time.

    A column's value is put together from the totals of its requests: the average for `mean`,
    `std` and `zero_fraction`, the least `min`, the greatest `max`, the sum of `non_finite`. A
    column begins at a multiple of its width, which is the least of 1, 2, 5, ... ms, 1, 2, 5, ...
    s, min, h, days that makes no more than `columns` of them.

    Args:
        index: to ask.
        window: which records.
        statistic: one of `STATISTICS`.
        columns: the most there may be.
    """
    return _heatmaps(index, window, (statistic,), columns, "value")[statistic]


def heatmaps(index: Index, window: Window, columns: int = 60) -> dict[str, Heatmap]:
    """Return the heat maps of all statistics, asked for at once; see `heatmap`."""
    return _heatmaps(index, window, STATISTICS, columns, "value")


def gradient_heatmap(index: Index, window: Window, statistic: str, columns: int = 60) -> Heatmap:
    """Return the same of the layers' gradients: `norm` (average) or `non_finite` (sum)."""
    return _heatmaps(index, window, (statistic,), columns, "gradient")[statistic]


def _heatmaps(
    index: Index, window: Window, statistics: Sequence[str], columns: int, table: str
) -> dict[str, Heatmap]:
    owner, first = window.owner("l")
    record_owner, _ = window.owner("v")
    condition, second = window.condition("v")
    flag = "v.dead" if table == "value" else "v.flag > 0"
    asked = ", ".join(TOGETHER[statistic] for statistic in statistics)
    with index.cursor() as cursor:
        ends = cursor.execute(
            f"SELECT min(v.time), max(v.time) FROM record v WHERE {record_owner} AND {condition}",
            [*first, *second],
        ).fetchone()
        if ends is None or ends[0] is None:
            return {statistic: Heatmap(statistic, [], [], 1, [], []) for statistic in statistics}
        width = _width(ends[0], ends[1], columns)
        start = ends[0] // width * width
        found = cursor.execute(
            f"SELECT l.key, v.time // {width}, count(*), count(*) FILTER ({flag}), {asked} "
            f"FROM {table} v JOIN layer l ON l.id = v.layer "
            f"WHERE v.total AND {owner} AND {condition} GROUP BY ALL",
            [*first, *second],
        ).fetchall()
        counted = cursor.execute(
            f"SELECT v.time // {width}, count(*) FROM record v "
            f"WHERE {record_owner} AND {condition} GROUP BY ALL",
            [*first, *second],
        ).fetchall()
    many = (ends[1] - start) // width + 1
    seen = {row[0] for row in found}
    layers = [key for key in index.order(window.model, window.version) if key in seen]
    place = {key: number for number, key in enumerate(layers)}
    values: list[list[list[float | None]]] = [[[None] * many for _ in layers] for _ in statistics]
    measured, flagged_in = ([[0] * many for _ in layers] for _ in range(2))
    records = [0] * many
    for key, column, number, marked, *numbers in found:
        at = column - start // width
        # A record that came in since the ends were asked for.
        if key in place and 0 <= at < many:
            measured[place[key]][at], flagged_in[place[key]][at] = number, marked
            for of_statistic, value in zip(values, numbers, strict=True):
                of_statistic[place[key]][at] = value if value is None else float(value)
    for column, number in counted:
        at = column - start // width
        if 0 <= at < many:
            records[at] = number
    starts = [start + number * width for number in range(many)]
    return {
        statistic: Heatmap(
            statistic, layers, starts, width, of_statistic, records, measured, flagged_in
        )
        for statistic, of_statistic in zip(statistics, values, strict=True)
    }


def _width(first: int, last: int, columns: int) -> int:
    for width in _WIDTHS:
        if last // width - first // width < columns:
            return width
    return max(1, -(-(last - first + 1) // max(1, columns - 1)))
