"""Averages over the rows of a window, which is what a baseline's averages are over."""

import math
from dataclasses import dataclass
from typing import Any, Final

from formats.baseline import STATISTICS, Baseline
from observe.deviation import deviation, summary_of
from observe.index import Index
from observe.queries import Window

__all__ = ["RowAverage", "row_averages", "trends"]

_FAR_TIMES: Final = 3


@dataclass(frozen=True)
class RowAverage:
    """One statistic of one layer, averaged over rows.

    Attributes:
        rows: in which it was finite.
        value: the average; None where there is none.
        deviation: from the baseline's mean, in its spreads; None where it has none.
    """

    rows: int
    value: float | None
    deviation: float | None

    @property
    def limit(self) -> float:
        """How many spreads are remarkable: one, and for chance twice the average's own error."""
        return 1 + 2 / math.sqrt(max(1, self.rows))

    @property
    def degree(self) -> int:
        """Return 0, 1 (the deviation is beyond the limit) or 2 (beyond three times the limit)."""
        away = abs(self.deviation or 0.0)
        return (away >= self.limit) + (away >= _FAR_TIMES * self.limit)


def row_averages(
    index: Index, window: Window, baseline: Baseline | None
) -> dict[str, dict[str, RowAverage]]:
    """Return the average of each statistic over single rows, by layer and statistic.

    A request of several rows counts as often as it has rows. A layer without a row axis is absent
    where all requests had several rows.

    Args:
        index: to ask.
        window: which records.
        baseline: to hold them against, or None.
    """
    aggregates = ", ".join(f"count(v.{name}), avg(v.{name})" for name in STATISTICS)
    found = _by_layer(index, window, f"l.key, {aggregates}", "v.row_number >= 0", "l.key")
    averages = {}
    for key, *numbers in found:
        averages[key] = {
            name: RowAverage(
                numbers[2 * place],
                numbers[2 * place + 1],
                deviation(numbers[2 * place + 1], summary_of(baseline, key, name)),
            )
            for place, name in enumerate(STATISTICS)
        }
    return averages


def trends(
    index: Index, window: Window, until: int, width: int, columns: int
) -> dict[str, list[float | None]]:
    """Return each layer's average `mean` over the last stretches of time.

    Args:
        index: to ask.
        window: whose model and version.
        until: where the last stretch ends, milliseconds since 1970.
        width: of a stretch, milliseconds.
        columns: how many stretches.

    Returns:
        By the layer's key: the oldest first; None where nothing was finite.
    """
    whole = Window(window.model, window.version, until - columns * width, until)
    place = f"({until - 1} - v.time) // {width}"
    found: dict[str, list[float | None]] = {}
    for key, ago, value in _by_layer(
        index, whole, f"l.key, {place}, avg(v.mean)", "v.total", "ALL"
    ):
        found.setdefault(key, [None] * columns)[columns - 1 - ago] = value
    return found


def _by_layer(index: Index, window: Window, select: str, where: str, group: str) -> list[Any]:
    owner, first = window.owner("l")
    condition, second = window.condition("v")
    with index.cursor() as cursor:
        return cursor.execute(
            f"SELECT {select} FROM value v JOIN layer l ON l.id = v.layer "
            f"WHERE {where} AND {owner} AND {condition} GROUP BY {group}",
            [*first, *second],
        ).fetchall()
