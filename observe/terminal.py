"""Text for a terminal: what a log says made harmless, short numbers, trends in blocks."""

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size

from formats.baseline import Summary

__all__ = ["ago", "blocks", "printable", "shortened", "squeezed"]

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_GAP: Final = " "
_ROOM: Final = 2.0


def printable(text: str) -> str:
    """Return a text without what a terminal would obey: escapes, line ends, turned writing."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def ago(milliseconds: int) -> str:
    """Return how long something is past, in whole units: "95 s", "3 days"."""
    seconds = max(0, milliseconds) // 1000
    for unit, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"


def shortened(value: float | None) -> str:
    """Return a number in at most eight characters; a dash for none."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:.4g}"
    if "e" in text:
        digits = 1 if len(text.partition("e")[2]) > 3 else 2
        factor, _, power = f"{value:.{digits - 1}e}".partition("e")
        text = f"{factor}e{int(power)}"
    return text.replace("-", "\N{MINUS SIGN}")


def squeezed(text: str, width: int) -> str:
    """Return a layer's name in `width` cells: of a long one the end, which tells layers apart."""
    text = printable(text)
    if cell_len(text) <= width:
        return text
    if width < 2:
        return set_cell_size(text, max(0, width))
    while cell_len(text) > width - 1:
        text = text[1:]
    return "\N{HORIZONTAL ELLIPSIS}" + text


def blocks(values: Sequence[float | None], summary: Summary | None) -> str:
    """Return values as Unicode blocks, one each; what is missing is a space.

    Args:
        values: in time.
        summary: of the baseline: the blocks span at least two of its spreads to either side of
            its mean, so that what is usual looks flat. None: they span the values.
    """
    known = [value for value in values if value is not None]
    if not known:
        return _GAP * len(values)
    low, high = min(known), max(known)
    if summary is not None:
        low = min(low, summary.mean - _ROOM * summary.spread)
        high = max(high, summary.mean + _ROOM * summary.spread)
    top = len(_BLOCKS) - 1
    return "".join(
        _GAP
        if value is None
        else _BLOCKS[round(top * (value - low) / (high - low)) if high > low else top // 2]
        for value in values
    )
