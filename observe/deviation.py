"""How far a statistic is from the baseline, in the baseline's spreads."""

from dataclasses import dataclass
from typing import Final

from formats.baseline import Baseline, Summary
from formats.score import Scale, away, scales
from observe.sketches import sketch

__all__ = ["FAR", "STEPS", "Known", "deviation", "summary_of", "within"]

STEPS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Spreads from which on a colour is a shade deeper."""
FAR: Final = 1000.0
"""Deviations are cut off here: from then on the number says nothing more."""


@dataclass(frozen=True)
class Known(Summary):
    """What the baseline knows of a layer's statistic.

    Attributes:
        scale: what a spread counts as: that of the baseline, or more where the statistic is all
            but constant; see `formats.score.scales`.
    """

    scale: float = 0.0


def summary_of(baseline: Baseline | None, key: str, statistic: str) -> Known | None:
    """Return what the baseline knows of a layer's statistic, or None."""
    layer = None if baseline is None else baseline.layers.get(key)
    if layer is None or statistic not in layer:
        return None
    scale = scales(Baseline("", 0, {key: layer}))[key][statistic]
    return Known(**vars(layer[statistic]), scale=scale.spread)


def deviation(value: float | None, known: Known | None) -> float | None:
    """Return how many spreads `value` lies above the baseline's mean, -`FAR` to `FAR`.

    Args:
        value: of one row, or an average over several.
        known: of the baseline; None where it has none.

    Returns:
        None where either is missing.
    """
    if value is None or known is None:
        return None
    return _spreads(value, known.mean, known)


def within(value: float | None, known: Known | None) -> float | None:
    """Return how many spreads `value` lies outside the baseline's range; 0 inside it.

    That is for the least or the greatest of many rows, which lies at the range's end.
    """
    if value is None or known is None:
        return None
    digest = sketch(known.sketch)
    return _spreads(value, min(max(value, digest.get_min_value()), digest.get_max_value()), known)


def _spreads(value: float, usual: float, known: Known) -> float:
    return max(-FAR, min(FAR, away(value, Scale(usual, known.scale))))
