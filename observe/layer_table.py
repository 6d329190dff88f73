"""The layers of a snapshot as a table for the terminal, as wide as there is room for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from formats.baseline import Baseline
from observe.deviation import summary_of
from observe.row_averages import RowAverage
from observe.snapshot import TREND, LayerNow
from observe.terminal import blocks, printable, shortened, squeezed
from observe.words import spreads

__all__ = ["LEGEND", "LayerTable", "layer_table"]

MARKS: Final = ("", "*", "!")
"""Behind a deviation: within the limit, beyond it, beyond three times it."""
STYLES: Final = ("dim", "yellow", "bold red")
LEGEND: Final = "±: spreads from the baseline's mean; * beyond 1 + 2/√rows, ! beyond 3 times that"
_NARROWEST: Final = 11
_WIDEST: Final = 40
_SHORTEST_TREND: Final = 6


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    # The lowest goes first where there is no room.
    rank: int
    right: bool = True


_COLUMNS: Final = {
    "mean": _Column("mean", 8, 9),
    "mean±": _Column("±", 7, 8),
    "std": _Column("std", 8, 5),
    "std±": _Column("±", 7, 1),
    "zero_fraction": _Column("zeros", 6, 6),
    "zero_fraction±": _Column("±", 7, 3),
    "dead": _Column("dead", 5, 7),
    "units": _Column("unfired", 7, 4),
    "non_finite": _Column("NaN", 5, 8),
    "trend": _Column("trend", TREND, 2, right=False),
}


@dataclass(frozen=True)
class LayerTable:
    """A table, and what of it there was no room for.

    Attributes:
        table: to print.
        lines: how many it has.
        hidden: layers that it lacks.
        columns: titles of columns that it lacks.
    """

    table: Table
    lines: int
    hidden: int
    columns: tuple[str, ...]


def layer_table(
    layers: Sequence[LayerNow],
    baseline: Baseline | None,
    width: int,
    most: int | None = None,
    *,
    units: Mapping[str, str] | None = None,
    drifted: frozenset[str] = frozenset(),
) -> LayerTable:
    """Return a table of layers in execution order.

    Args:
        layers: in execution order.
        baseline: what they are compared with, or None.
        width: of the terminal.
        most: layers there is room for; of more, the strangest.
        units: by layer, how many units never fired, in words.
        drifted: layers whose drift alarm rang.
    """
    widest = max([_NARROWEST, *(cell_len(printable(one.key)) for one in layers)])
    chosen = _columns(width, widest, baseline is not None, bool(units))
    rest = width - sum(chosen.values()) - len(chosen)
    name_width = max(1, min(widest, rest, _WIDEST))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="underline")
    table.add_column("layer", width=name_width, no_wrap=True)
    for name, column_width in chosen.items():
        column = _COLUMNS[name]
        table.add_column(
            column.title,
            width=column_width,
            no_wrap=True,
            justify="right" if column.right else "left",
        )
    shown = list(layers)
    if most is not None and len(shown) > most:
        strangest = sorted(shown, key=lambda one: -one.weight)[:most]
        kept = {one.key for one in strangest}
        shown = [one for one in shown if one.key in kept]
    for one in shown:
        style = "bold" if one.overview.non_finite or one.key in drifted else ""
        cells = [_cell(one, name, chosen[name], baseline, units or {}) for name in chosen]
        table.add_row(Text(squeezed(one.key, name_width), style), *cells)
    meant = _columns(10_000, widest, baseline is not None, bool(units))
    lacking = tuple(name for name in meant if name not in chosen)
    return LayerTable(table, 1 + len(shown), len(layers) - len(shown), lacking)


def _columns(width: int, longest: int, compared: bool, units: bool) -> dict[str, int]:
    """Return the columns there is room for, and how wide they are."""
    widths = {
        name: column.width
        for name, column in _COLUMNS.items()
        if (compared or not name.endswith("±")) and (units or name != "units")
    }
    room = width - min(longest, _NARROWEST)
    while widths and (over := sum(widths.values()) + len(widths) - room) > 0:
        if widths.get("trend", 0) > _SHORTEST_TREND:
            widths["trend"] = max(_SHORTEST_TREND, widths["trend"] - over)
        else:
            del widths[min(widths, key=lambda name: _COLUMNS[name].rank)]
    return widths


def _cell(
    one: LayerNow, name: str, width: int, baseline: Baseline | None, units: Mapping[str, str]
) -> Text:
    if name == "dead":
        return _count(one.overview.dead)
    if name == "non_finite":
        return _count(one.overview.non_finite)
    if name == "units":
        text = units.get(one.key, "")
        return Text(text, "" if text.startswith("0") else "yellow")
    if name == "trend":
        return Text(blocks(one.trend[-width:], summary_of(baseline, one.key, "mean")), "cyan")
    if name.endswith("±"):
        return _deviation(one.average(name.removesuffix("±")))
    value = one.average(name).value
    if name == "zero_fraction":
        return Text("–" if value is None else f"{value:.1%}")
    return Text(shortened(value))


def _count(number: int) -> Text:
    if not number:
        return Text("0", "dim")
    text = f"{number}" if number < 100_000 else f"{number / 1e6:.1f}M"
    return Text(text, "bold red")


def _deviation(average: RowAverage) -> Text:
    if average.deviation is None:
        return Text("")
    degree = average.degree
    # The mark has a place of its own, so that the digits stand below each other.
    return Text(f"{spreads(average.deviation)}{MARKS[degree] or ' '}", STYLES[degree])
