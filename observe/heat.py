"""A heat map to draw: cells with their colours and with what they say in words."""

import math
from dataclasses import dataclass
from typing import Final

from formats.baseline import Baseline
from observe.colours import Colours, Scale
from observe.deviation import deviation, summary_of, within
from observe.queries import Heatmap
from observe.words import amount, exact, moment, spreads

__all__ = ["Cell", "Column", "Grid", "GridRow", "grid", "thumbnail"]

_EXTREMES: Final = ("min", "max")
_ALARMING: Final = ("bad", "dead")


@dataclass(frozen=True)
class Cell:
    """One layer in one stretch of time.

    Attributes:
        value: None where there was nothing finite.
        deviation: from the baseline, in its spreads; None where there is none.
        measured: requests in which the layer was measured.
        flagged: of these, those in which it was all zeros (a gradient: vanished or exploded).
        non_finite: values that were NaN or infinite.
        shade: CSS classes.
        words: what it says.
    """

    value: float | None
    deviation: float | None
    measured: int
    flagged: int
    non_finite: int
    shade: str
    words: str

    @property
    def weight(self) -> float:
        """How strange it is: what is not finite before what is all zeros before what deviates."""
        if self.non_finite:
            return 3000.0
        if self.flagged:
            return 2000.0 + self.flagged / self.measured
        return abs(self.deviation or 0.0)


@dataclass(frozen=True)
class Column:
    """A stretch of time.

    Attributes:
        start: milliseconds since 1970.
        end: the first that is no longer meant.
        records: requests in it.
        height: of its bar, 0 to 10.
        words: from when to when.
    """

    start: int
    end: int
    records: int
    height: int
    words: str


@dataclass(frozen=True)
class GridRow:
    """One layer and its cells."""

    key: str
    cells: tuple[Cell, ...]

    @property
    def weight(self) -> float:
        """How strange its strangest cell is."""
        return max((cell.weight for cell in self.cells), default=0.0)


@dataclass(frozen=True)
class Grid:
    """A heat map to draw.

    Attributes:
        statistic: which.
        scale: what the colours mean.
        width: of a column, milliseconds.
        columns: in time.
        rows: layers in execution order, those that are shown.
        layers: how many there are in all.
    """

    statistic: str
    scale: Scale
    width: int
    columns: tuple[Column, ...]
    rows: tuple[GridRow, ...]
    layers: int


def grid(
    heatmap: Heatmap,
    non_finite: Heatmap,
    baseline: Baseline | None,
    scale: Scale,
    *,
    most: int | None = None,
) -> Grid:
    """Return a heat map to draw.

    Args:
        heatmap: the statistic.
        non_finite: how many values were not finite, in the same window and columns.
        baseline: what deviations are from, whatever the colours mean.
        scale: what the colours mean.
        most: layers to show; of more, the strangest.
    """
    busiest = max([1, *heatmap.records])
    columns = tuple(
        Column(
            start,
            start + heatmap.width,
            records,
            math.ceil(10 * records / busiest),
            f"{moment(start)} to {moment(start + heatmap.width)}",
        )
        for start, records in zip(heatmap.starts, heatmap.records, strict=True)
    )
    faults = dict(zip(non_finite.layers, non_finite.values, strict=True))
    all_values = [value for values in heatmap.values for value in values if value is not None]
    rows = []
    for place, key in enumerate(heatmap.layers):
        values = heatmap.values[place]
        colours = Colours(scale, all_values if scale == "flow" else values)
        summary = summary_of(baseline, key, heatmap.statistic)
        compare = within if heatmap.statistic in _EXTREMES else deviation
        cells = []
        for number, value in enumerate(values):
            measured, flagged = heatmap.measured[place][number], heatmap.flagged[place][number]
            bad = int(faults[key][number] or 0) if key in faults else 0
            away = compare(value, summary)
            cells.append(
                Cell(
                    value,
                    away,
                    measured,
                    flagged,
                    bad,
                    colours.of(value, away, measured, flagged, bad),
                    _words(key, heatmap.statistic, columns[number], value, away)
                    + _counted(measured, flagged, bad, scale),
                )
            )
        rows.append(GridRow(key, tuple(cells)))
    shown = rows
    if most is not None and len(rows) > most:
        chosen = {row.key for row in sorted(rows, key=lambda row: -row.weight)[:most]}
        shown = [row for row in rows if row.key in chosen]
    return Grid(heatmap.statistic, scale, heatmap.width, columns, tuple(shown), len(heatmap.layers))


def thumbnail(
    grid: Grid, rows: int = 16, columns: int = 30
) -> tuple[int, int, list[tuple[int, int, int, str]]]:
    """Return a small picture of a heat map.

    Several layers or columns share a place where there are more; the strangest of them shows.

    Args:
        grid: of which.
        rows: the most there may be.
        columns: likewise.

    Returns:
        Its rows, its columns, and its tiles: (row, first column, columns, CSS classes).
    """
    found: list[tuple[int, int, int, str]] = []
    tall = max(1, math.ceil(len(grid.rows) / rows))
    wide = max(1, math.ceil(len(grid.columns) / columns))
    for top in range(0, len(grid.rows), tall):
        for left in range(0, len(grid.columns), wide):
            together = [
                cell
                for row in grid.rows[top : top + tall]
                for cell in row.cells[left : left + wide]
            ]
            classes = max(together, key=lambda cell: (cell.measured > 0, cell.weight)).shade
            row, place = top // tall, left // wide
            if place and found[-1][3] == classes:
                found[-1] = (row, found[-1][1], found[-1][2] + 1, classes)
            else:
                found.append((row, place, 1, classes))
    return -(-len(grid.rows) // tall), -(-len(grid.columns) // wide), found


def _words(
    key: str, statistic: str, column: Column, value: float | None, away: float | None
) -> str:
    text = f"{key}, {column.words}: {statistic} {exact(value)}"
    return text if away is None else f"{text}, {spreads(away)} spreads from the baseline"


def _counted(measured: int, flagged: int, bad: int, scale: Scale) -> str:
    text = f", {amount(measured, 'request')}"
    if flagged:
        text += f", {'vanished or exploded' if scale == 'flow' else 'all zeros'} in {flagged:,}"
    if bad:
        text += f", {amount(bad, 'value')} NaN or infinite"
    return text
