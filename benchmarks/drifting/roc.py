"""How well the out-of-distribution score tells strange inputs from usual ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.drifting.subject import rows
from formats.baseline import Baseline
from formats.score import scales, score
from observe.lines import Columns
from observe.outliers import threshold

__all__ = ["Separation", "draw", "scores", "separate"]

_DRAWN: Final = ("shifted", "uniform", "gaussian", "blank", "inverted", "moved", "noisy")


@dataclass(frozen=True)
class Separation:
    """How scores of strange inputs lie beside those of usual ones.

    Attributes:
        false: share of usual ones that score at least so high, by falling score; 0 to 1.
        true: the same of the strange ones.
        found: share of the strange ones over the baseline's threshold.
    """

    false: NDArray[np.float64]
    true: NDArray[np.float64]
    found: float

    @property
    def area(self) -> float:
        """Area under the curve: how often a strange one scores higher than a usual one."""
        return float(np.trapezoid(self.true, self.false))


def scores(records: Columns, baseline: Baseline) -> NDArray[np.float64]:
    """Return the score of each record of one row."""
    known = scales(baseline)
    found = [score(row, known) for row in rows(records)]
    return np.array([np.nan if one is None else one for one in found])


def separate(
    usual: NDArray[np.float64], strange: NDArray[np.float64], baseline: Baseline
) -> Separation:
    """Compare scores; the curve goes through every score that there is."""
    assert baseline.score is not None
    levels = np.unique(np.concatenate([usual, strange]))[::-1]
    false = np.concatenate([[0.0], _at_least(usual, levels)])
    true = np.concatenate([[0.0], _at_least(strange, levels)])
    return Separation(false, true, float((strange > threshold(baseline.score)).mean()))


def _at_least(values: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered = np.sort(values)
    return 1 - np.searchsorted(ordered, levels, side="left") / len(ordered)


def draw(found: Mapping[str, Mapping[str, Separation]], path: Path) -> None:
    """Write a picture: the curves of each model."""
    # Not pyplot: a figure by itself needs no display, and leaves nothing open.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axes, (model, separations) in zip(
        np.atleast_1d(figure.subplots(1, len(found), sharey=True)), found.items(), strict=True
    ):
        for name in _drawn(list(separations)):
            one = separations[name]
            axes.plot(one.false, one.true, label=f"{name}, area {one.area:.3f}")
        axes.axvline(0.01, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xticks([0, 0.01, 0.1, 1], ["0", "1 %", "10 %", "100 %"])
        axes.set_title(model, loc="left")
        axes.set_xlabel("usual digits that score as high")
        axes.legend(loc="lower right", fontsize="small")
    figure.axes[0].set_ylabel("strange inputs that score as high")
    figure.savefig(path, dpi=110)


def _drawn(names: Sequence[str]) -> list[str]:
    return [name for name in names if name in _DRAWN]
