"""Which parts of a screen get how many of a terminal's lines."""

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["Lines", "allot"]

_FEWEST_LAYERS: Final = 3
# The table's own title, and how far the log was read.
_ALWAYS: Final = 2


@dataclass(frozen=True)
class Lines:
    """Lines of each part.

    Attributes:
        head: what is shown; the first says of which model.
        layers: of the table, one each.
        legend: what the table's marks mean.
        told: findings.
        rows: requests; they have a title besides.
    """

    head: int
    layers: int
    legend: int
    told: int
    rows: int

    @property
    def total(self) -> int:
        """Lines of all together."""
        titled = self.rows + 1 if self.rows else 0
        return self.head + self.layers + self.legend + self.told + titled + _ALWAYS


def allot(wanted: Lines, height: int, noted: bool) -> Lines:
    """Return what each part gets of a terminal's lines.

    Where there are too few, a line says so, and these are cut short, in this order: the legend,
    requests to three, findings to three lines, layers to as many as fit and no fewer than three,
    then the rest but for the first line and one layer.

    Args:
        wanted: by each part.
        height: lines there are.
        noted: whether that line is there in any case.
    """
    if wanted.total + noted <= height:
        return wanted
    given = replace(wanted, legend=0)
    room = height - 1
    for part, least in (("rows", 3), ("told", 3), ("layers", _FEWEST_LAYERS), ("rows", 0),
                        ("told", 0), ("head", 1), ("layers", 1)):  # fmt: skip
        over = given.total - room
        if over <= 0:
            break
        own = getattr(given, part)
        kept = max(min(own, least), own - over)
        given = replace(given, **{part: kept})
    return given
