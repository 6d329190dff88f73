"""The colours of a heat map: CSS classes, which `static/plots.css` knows."""

import math
from bisect import bisect_right
from typing import Final, Literal

from observe.deviation import STEPS

__all__ = ["Colours", "Scale", "position", "shade"]

Scale = Literal["baseline", "value", "flow", "count"]
"""What colours mean: spreads from the baseline; a layer's own range; magnitude over all layers;
nothing (what is counted has its mark)."""

_SHADES: Final = 9


def shade(value: float) -> int:
    """Return the colour of a deviation: -5 to 5, 0 within half a spread of the baseline."""
    step = bisect_right(STEPS, abs(value))
    return -step if value < 0 else step


def position(value: float, low: float, high: float) -> float:
    """Return where `value` is from `low` (0) to `high` (1), which is greater; cut off there."""
    value = min(max(value, low), high)
    if math.isfinite(high - low):
        return (value - low) / (high - low)
    return (value / 2 - low / 2) / (high / 2 - low / 2)


class Colours:
    """Chooses CSS classes; `values` span the colours where they do not mean deviations."""

    def __init__(self, scale: Scale, values: list[float | None] | list[float]) -> None:
        self._scale = scale
        known = [self._height(value) for value in values if value is not None]
        known = [height for height in known if math.isfinite(height)]
        self._low, self._high = (min(known), max(known)) if known else (0.0, 0.0)

    def of(
        self, value: float | None, away: float | None, measured: int, flagged: int, bad: int
    ) -> str:
        """Return the classes of a cell."""
        if not measured:
            return "none"
        marks = " bad" if bad else " dead" if 2 * flagged >= measured else ""
        if value is None:
            return f"unknown{marks}"
        if self._scale == "baseline":
            return f"z{shade(away)}{marks}" if away is not None else f"unknown{marks}"
        if self._scale == "count":
            return f"z0{marks}"
        if not self._high > self._low:
            return f"v{_SHADES // 2}{marks}"
        share = position(self._height(value), self._low, self._high)
        return f"v{round(_SHADES * share)}{marks}"

    def _height(self, value: float) -> float:
        if self._scale != "flow":
            return value
        return math.log10(value) if value > 0 else -math.inf
