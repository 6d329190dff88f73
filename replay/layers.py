"""Statistics of layers over many runs."""

import math
from dataclasses import dataclass

from formats.statistics import LayerStatistics

__all__ = ["LayerTotals"]


@dataclass
class _Total:
    """Sums over runs; mean and spread are those of the runs whose values were all finite.

    Runs are joined as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979).
    """

    elements: int = 0
    zeros: float = 0.0
    non_finite: int = 0
    measured: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf

    def add(self, run: LayerStatistics) -> None:
        self.elements += run.elements
        self.zeros += (run.zero_fraction or 0.0) * run.elements
        self.non_finite += run.non_finite
        if run.mean is None or run.std is None or run.min is None or run.max is None:
            return
        count = self.measured + run.elements
        apart = run.mean - self.mean
        self.squares += run.std**2 * run.elements
        self.squares += apart**2 * self.measured * run.elements / count
        self.mean += apart * run.elements / count
        self.measured = count
        self.least = min(self.least, run.min)
        self.greatest = max(self.greatest, run.max)

    def statistics(self) -> LayerStatistics:
        some = self.measured > 0
        return LayerStatistics(
            elements=self.elements,
            mean=self.mean if some else None,
            std=math.sqrt(self.squares / self.measured) if some else None,
            min=self.least if some else None,
            max=self.greatest if some else None,
            zero_fraction=self.zeros / self.elements if self.elements else None,
            non_finite=self.non_finite,
        )


class LayerTotals:
    """Statistics of layers, by activation key in the order in which they first ran."""

    def __init__(self) -> None:
        self._totals: dict[str, _Total] = {}

    def add(self, key: str, run: LayerStatistics) -> None:
        """Add what a layer put out in one run."""
        self._totals.setdefault(key, _Total()).add(run)

    def statistics(self) -> dict[str, LayerStatistics]:
        """Return the statistics over all runs.

        Mean, deviation and extremes leave out runs in which a value was not finite.
        """
        return {key: total.statistics() for key, total in self._totals.items()}
