"""Drift: whether a window's layers are still distributed as those of the baseline.

For each layer and statistic, the two-sample Kolmogorov-Smirnov distance: the most by which the
share of rows with a value up to x differs, over all x, between the window and the baseline. For
n and m rows drawn independently from one distribution,

    P(distance > t) <= e exp(-2 t^2 n m / (n + m))

(Wei & Dudley, "Two-sample Dvoretzky-Kiefer-Wolfowitz inequalities", Statistics & Probability
Letters 82, 2012, arXiv 1107.5356: proved for n = m; for other sizes they find less than that),
whatever the distribution is; where values repeat, the distance is less. The threshold is the t at
which the right side is `FALSE_ALARMS` over the number of distances taken (Bonferroni), and `SLACK`
on top of it: calibration inputs are never quite what requests are, and a sketch is not quite the
values it stands for. So a window of any size alarms about no difference of less than `SLACK`.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from formats.baseline import STATISTICS, Baseline, Summary
from observe.index import Index
from observe.latest import latest as latest_rows
from observe.queries import Window
from observe.sketches import values

__all__ = [
    "FALSE_ALARMS",
    "LEAST_ROWS",
    "SLACK",
    "Distance",
    "LayerDrift",
    "critical",
    "distance",
    "drift",
]

FALSE_ALARMS: Final = 0.01
"""The share of windows that may alarm, over all layers together, though nothing has changed."""
SLACK: Final = 0.05
"""The distance between two distributions up to which they are taken for the same."""
LEAST_ROWS: Final = 20
"""Fewer rows in the window than this say nothing."""
_TOLERANCE: Final = 1e-5
"""What engines and devices may differ by, in magnitudes of the layer; as the export allows them."""


@dataclass(frozen=True)
class Distance:
    """How far one statistic of a layer has moved.

    Attributes:
        statistic: which; one of `formats.baseline.STATISTICS`.
        distance: between window and baseline, 0 (the same) to 1 (no value in common).
        threshold: what it must exceed; above 1 where the rows are too few for any alarm.
        rows: of the window.
        alarm: whether it does.
    """

    statistic: str
    distance: float
    threshold: float
    rows: int

    @property
    def alarm(self) -> bool:
        """Whether the distance exceeds the threshold."""
        return self.distance > self.threshold


@dataclass(frozen=True)
class LayerDrift:
    """How far a layer has moved.

    Attributes:
        key: the layer's.
        worst: the distance that is farthest beyond its threshold, or nearest to it.
        distances: of each statistic.
    """

    key: str
    worst: Distance
    distances: tuple[Distance, ...]

    @property
    def alarm(self) -> bool:
        """Whether one of its statistics has moved too far."""
        return any(one.alarm for one in self.distances)


def drift(index: Index, window: Window, baseline: Baseline, latest: int = 500) -> list[LayerDrift]:
    """Hold a window's rows against a baseline.

    A row counts as it did for the baseline, by itself, also in a request of several; rows are
    taken to be independent of each other. Steps of training are left out, and values that are
    not finite.

    Args:
        index: to ask.
        window: which records.
        baseline: of the model.
        latest: the rows that are compared, at most: those of the latest requests.

    Returns:
        In execution order. Layers that the baseline does not know, or that ran in fewer than
        `LEAST_ROWS` rows, are absent.

    Raises:
        FormatError: a sketch of the baseline is damaged.
    """
    found = latest_rows(index, window, latest, latest)
    pairs: dict[str, dict[str, NDArray[np.float64]]] = {}
    for key in found.keys:
        for statistic in STATISTICS:
            if statistic in baseline.layers.get(key, {}):
                rows = found.of(key, statistic, latest)
                if len(rows) >= LEAST_ROWS:
                    pairs.setdefault(key, {})[statistic] = rows
    tests = sum(map(len, pairs.values()))
    result = []
    for key, statistics in pairs.items():
        known = baseline.layers[key]
        distances = tuple(
            Distance(
                statistic,
                distance(rows, values(known[statistic]), _tolerance(known, statistic)),
                critical(len(rows), known[statistic].rows, tests) + SLACK,
                len(rows),
            )
            for statistic, rows in statistics.items()
        )
        worst = max(distances, key=lambda one: one.distance - one.threshold)
        result.append(LayerDrift(key, worst, distances))
    return result


def distance(window: NDArray[np.float64], baseline: NDArray[np.float64], tolerance: float) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples that agree within a tolerance.

    Args:
        window: values, float64 [n].
        baseline: values, float64 [m].
        tolerance: by how much a value may have moved without counting: a constant that is
            rounded otherwise is still that constant.
    """
    ours, theirs = np.sort(window), np.sort(baseline)
    return max(_above(ours, theirs, tolerance), _above(theirs, ours, tolerance), 0.0)


def _above(first: NDArray[np.float64], second: NDArray[np.float64], tolerance: float) -> float:
    """Return the most by which the first's share of values up to x exceeds the second's."""
    # It rises at the first's own values only, so that it is greatest at one of them.
    share = np.searchsorted(first, first, side="right") / len(first)
    other = np.searchsorted(second, first + tolerance, side="right") / len(second)
    return float(np.max(share - other))


def critical(rows: int, baseline_rows: int, tests: int) -> float:
    """Return the distance that samples of one distribution exceed in a share of windows only.

    Args:
        rows: of the window.
        baseline_rows: of the baseline.
        tests: how many distances are taken; in `FALSE_ALARMS` of all windows, one exceeds it.
    """
    information = rows * baseline_rows / (rows + baseline_rows)
    return math.sqrt(math.log(math.e * tests / FALSE_ALARMS) / (2 * information))


def _tolerance(statistics: dict[str, Summary], statistic: str) -> float:
    if statistic == "zero_fraction":
        return _TOLERANCE
    return _TOLERANCE * max(
        (
            float(np.max(np.abs(values(summary)[[0, -1]])))
            for name, summary in statistics.items()
            if name != "zero_fraction"
        ),
        default=0.0,
    )
