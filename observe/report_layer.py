"""One layer over the whole window of a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from formats.baseline import Baseline
from observe.index import Index
from observe.queries import LayerOverview, UnitReport, Window, overview, units
from observe.row_averages import RowAverage, row_averages

__all__ = ["DISTRIBUTIONS", "MOST_TABLED", "Far", "LayerSummary", "strangest", "summarise"]

DISTRIBUTIONS: Final = ("mean", "std", "zero_fraction")
"""Statistics whose distributions and averages are held against the baseline's."""
MOST_TABLED: Final = 100
"""Layers that a table has; of more, the strangest."""


@dataclass(frozen=True)
class Far:
    """A statistic that left the baseline: its name, and its average."""

    name: str
    average: RowAverage


@dataclass(frozen=True)
class LayerSummary:
    """One layer over the whole of a report's window.

    Attributes:
        overview: a request counting once.
        averages: a row counting once, by statistic.
        units: how often its units were active; None where that was not counted.
        awakened: of the units that never fired, those that did on the calibration rows; None
            where either is not known.
    """

    overview: LayerOverview
    averages: dict[str, RowAverage]
    units: UnitReport | None
    awakened: tuple[int, ...] | None

    @property
    def key(self) -> str:
        """The layer's key."""
        return self.overview.key

    def average(self, statistic: str) -> RowAverage:
        """Return a statistic's average over rows; empty where none was measured."""
        return self.averages.get(statistic, RowAverage(0, None, None))

    @property
    def dying(self) -> bool:
        """Whether it was silent in half of the requests, or units fell silent since the export."""
        return bool(self.awakened) or 2 * self.overview.dead >= max(1, self.overview.records)

    @property
    def sleepier(self) -> bool:
        """Whether more of it is zero than the baseline lets expect."""
        average = self.average("zero_fraction")
        return average.degree > 0 and (average.deviation or 0.0) > 0

    @property
    def far(self) -> Far | None:
        """The one of `DISTRIBUTIONS` whose average left the baseline the furthest, or None."""
        found = [Far(name, self.average(name)) for name in DISTRIBUTIONS]
        found = [one for one in found if one.average.degree]
        return max(found, key=lambda one: abs(one.average.deviation or 0.0), default=None)

    @property
    def weight(self) -> float:
        """How strange it is; see `observe.heat.Cell.weight`."""
        if self.overview.non_finite:
            return 3000.0
        if self.overview.dead:
            return 2000.0 + self.overview.dead / max(1, self.overview.records)
        return max((abs(one.deviation or 0.0) for one in self.averages.values()), default=0.0)


def strangest(layers: Sequence[LayerSummary], most: int = MOST_TABLED) -> list[LayerSummary]:
    """Return at most so many layers, the strangest, in execution order."""
    kept = {one.key for one in sorted(layers, key=lambda one: -one.weight)[:most]}
    return [one for one in layers if one.key in kept]


def summarise(index: Index, window: Window, baseline: Baseline | None) -> tuple[LayerSummary, ...]:
    """Return the layers over a window, in execution order."""
    averages = row_averages(index, window, baseline)
    fired = {one.key: one for one in units(index, window)}
    return tuple(
        LayerSummary(
            one,
            averages.get(one.key, {}),
            fired.get(one.key),
            _awakened(fired.get(one.key), baseline),
        )
        for one in overview(index, window)
    )


def _awakened(report: UnitReport | None, baseline: Baseline | None) -> tuple[int, ...] | None:
    """Return the units that fired on the calibration rows and never did since."""
    if report is None or report.dead is None or baseline is None:
        return None
    before = baseline.units.get(report.key)
    if before is None:
        return None
    return tuple(unit for unit in report.dead if unit < len(before) and before[unit] > 0)
