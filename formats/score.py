"""How far one row is from what the model was built for: its out-of-distribution score.

Each statistic of each layer is held against the baseline: z, how many of the baseline's spreads
it is away from the baseline's mean. The score is the root mean square of all z, each at most
`CAP`: a Mahalanobis distance with a diagonal covariance, after Lee et al., "A Simple Unified
Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018
(arXiv 1807.03888), who measure it on a layer's features. The cap keeps one statistic with a heavy
tail, such as a softmax's least value, from deciding alone.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from formats.baseline import Baseline

__all__ = ["CAP", "Scale", "away", "scales", "score"]

CAP: Final = 5.0
"""The most that one statistic counts for, in spreads; so the greatest score there is."""
_FLOOR: Final = 1e-3


class Scale(NamedTuple):
    """What one statistic of one layer is measured by.

    Attributes:
        mean: of the baseline.
        spread: of the baseline, but at least a thousandth of the layer's own magnitude (for
            `zero_fraction`, of 1): what is constant but for rounding has none to speak of.
    """

    mean: float
    spread: float


def scales(baseline: Baseline) -> dict[str, dict[str, Scale]]:
    """Return the scales of a baseline: by the layer's key, by statistic."""
    found = {}
    for key, statistics in baseline.layers.items():
        magnitude = max(
            (abs(s.mean) + s.spread for name, s in statistics.items() if name != "zero_fraction"),
            default=0.0,
        )
        found[key] = {
            name: Scale(
                s.mean, max(s.spread, _FLOOR * (1.0 if name == "zero_fraction" else magnitude))
            )
            for name, s in statistics.items()
        }
    return found


def away(value: float, scale: Scale) -> float:
    """Return z, signed; infinite where a scale of 0 is left."""
    difference = value - scale.mean
    if scale.spread > 0:
        return difference / scale.spread
    return math.copysign(math.inf, difference) if difference else 0.0


def score(
    layers: Mapping[str, Mapping[str, float | None]],
    baseline: Baseline | Mapping[str, Mapping[str, Scale]],
) -> float | None:
    """Return how far one row is from the baseline, 0 to `CAP`.

    Args:
        layers: the row's statistics, by the layer's key and the statistic's name; None is what
            is not finite. A layer with nothing but None had no values, and does not count.
        baseline: of the model, or its scales.

    Returns:
        About 1 for a row like those of the baseline; `CAP` where a layer is not finite; None where
        the row and the baseline have no layer in common.
    """
    wanted = scales(baseline) if isinstance(baseline, Baseline) else baseline
    total, count = 0.0, 0
    for key, statistics in layers.items():
        known = wanted.get(key, {})
        if all(statistics.get(name) is None for name in known):
            continue
        for name, scale in known.items():
            value = statistics.get(name)
            if value is None:
                return CAP
            total += min(abs(away(value, scale)), CAP) ** 2
            count += 1
    return math.sqrt(total / count) if count else None
