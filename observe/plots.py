"""Plots as Jinja macros (`templates/plots.html`): their geometry, and where they are drawn.

Nothing here knows of a web server: a page and a file to send on draw with the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from observe import words
from observe.colours import position, shade
from observe.distributions import Distribution
from observe.heat import thumbnail

__all__ = ["STYLE", "bars", "curve", "environment", "sparkline"]

_FOLDER: Final = Path(__file__).resolve().parent
STYLE: Final = _FOLDER / "static" / "plots.css"
"""What the plots need of CSS."""

SPARK: Final = (100.0, 20.0)
HISTOGRAM: Final = (200.0, 60.0)
"""Width and height of their view boxes."""


def environment() -> Environment:
    """Return templates that escape whatever they are given, with the words of `observe.words`."""
    made = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {name: getattr(words, name) for name in words.__all__}
    made.globals |= {
        "bars": bars,
        "curve": curve,
        "shade": shade,
        "sparkline_path": sparkline,
        "thumbnail_of": thumbnail,
    }
    return made


def sparkline(values: Sequence[float | None]) -> str:
    """Return an SVG path through values, in a view box of `SPARK`; what is missing is a gap."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    step = SPARK[0] / max(1, len(values) - 1)
    parts, pen = [], "M"
    for place, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        share = position(value, low, high) if high > low else 0.5
        parts.append(f"{pen}{place * step:.1f} {(1 - share) * (SPARK[1] - 2) + 1:.1f}")
        alone = (place + 1 == len(values) or values[place + 1] is None) and pen == "M"
        if alone:
            parts.append("h0.1")
        pen = "L"
    return "".join(parts)


def bars(shown: Distribution) -> list[tuple[float, float, float, float]]:
    """Return x, y, width and height of a histogram's bars, in a view box of `HISTOGRAM`."""
    width = HISTOGRAM[0] / len(shown.counts)
    top = _highest(shown)
    found = []
    for place, count in enumerate(shown.counts):
        if count:
            height = max(1.0, HISTOGRAM[1] * count / shown.rows / top)
            found.append((round(place * width, 2), round(HISTOGRAM[1] - height, 2), width, height))
    return found


def curve(shown: Distribution) -> str:
    """Return an SVG path along what the baseline lets expect, in the same view box."""
    if shown.expected is None:
        return ""
    width = HISTOGRAM[0] / len(shown.expected)
    top = _highest(shown)
    parts = [f"M0 {HISTOGRAM[1]:g}"]
    for place, share in enumerate(shown.expected):
        height = HISTOGRAM[1] * (1 - share / top)
        parts.append(f"L{place * width:.2f} {height:.2f}H{(place + 1) * width:.2f}")
    return "".join(parts) + f"V{HISTOGRAM[1]:g}"


def _highest(shown: Distribution) -> float:
    rows = max(1, shown.rows)
    return max([*(count / rows for count in shown.counts), *(shown.expected or ())]) or 1.0
