"""Units of a layer that were active, all workers put together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from observe.index import Index
from observe.window import Window

__all__ = ["UnitReport", "units"]

ROWS_NEEDED: Final = 200
"""Rows before a unit may be called dead, as in `handlers.units`."""


@dataclass(frozen=True)
class UnitReport:
    """How often the units of a ReLU-like layer were active, over all workers.

    Attributes:
        key: the layer's.
        rows: that were looked at.
        units: how many there are.
        active_fraction: in which part of the rows a unit was active, the mean over units.
        dead: indices of units that were never active; None where too few rows were looked at to
            say. Of a layer with more than `formats.units.MOST_COUNTED` units, at most so many.
        active: in how many rows each unit was active; None for such a layer.
    """

    key: str
    rows: int
    units: int
    active_fraction: float
    dead: list[int] | None
    active: list[int] | None = None


def units(index: Index, window: Window) -> list[UnitReport]:
    """Return how often units of ReLU-like layers were active in a window, in execution order.

    A worker tells now and then what it has counted since it started. So the last line of each
    that falls into the window is taken, less its last one before the window; where a layer has
    too many units for counts, the last lines alone, from before the window too.
    """
    owner, first = window.owner("l")
    latest = (
        "SELECT u.layer, u.worker, max(u.time) AS time, arg_max(u.rows, u.time) AS rows, "
        "arg_max(u.units, u.time) AS units, arg_max(u.fraction, u.time) AS fraction, "
        "last(u.dead ORDER BY u.time) AS dead, last(u.active ORDER BY u.time) AS active "
        "FROM unit u WHERE {} GROUP BY u.layer, u.worker"
    )
    condition, second = window.condition("u")
    before, third = ("u.time < ?", [window.since]) if window.since is not None else ("FALSE", [])
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT l.key, a.rows, a.units, a.fraction, a.dead, a.active, b.rows, b.active "
            f"FROM ({latest.format(condition)}) a JOIN layer l ON l.id = a.layer "
            f"LEFT JOIN ({latest.format(before)}) b ON b.layer = a.layer AND b.worker = a.worker "
            f"WHERE {owner} ORDER BY a.time",
            [*second, *third, *first],
        ).fetchall()
    by_key: dict[str, list[Any]] = {}
    for key, *counted in found:
        by_key.setdefault(key, []).append(counted)
    order = index.order(window.model, window.version)
    keys = [key for key in order if key in by_key] + sorted(by_key.keys() - set(order))
    reports = (_together(key, by_key[key]) for key in keys)
    return [report for report in reports if report is not None]


def _together(key: str, counted: Sequence[Sequence[Any]]) -> UnitReport | None:
    """Add up what workers counted; those that saw another number of units are left out."""
    size = counted[-1][1]
    counted = [one for one in counted if one[1] == size]
    if any(one[4] is None for one in counted):
        rows = sum(one[0] for one in counted)
        known = [set(one[3]) for one in counted if one[3] is not None]
        dead = sorted(set.intersection(*known)) if known and rows >= ROWS_NEEDED else None
        fraction = sum(one[2] * one[0] for one in counted) / rows if rows else 0.0
        return UnitReport(key, rows, size, fraction, dead) if rows else None
    rows, active = 0, np.zeros(size, dtype=np.int64)
    for own_rows, _, _, _, own, past_rows, past in counted:
        rows += own_rows - (past_rows or 0)
        active += np.array(own, dtype=np.int64)
        if past is not None:
            active -= np.array(past, dtype=np.int64)
    if rows <= 0 or not size:
        return None
    dead = np.flatnonzero(active == 0).tolist() if rows >= ROWS_NEEDED else None
    return UnitReport(key, rows, size, float(active.mean() / rows), dead, active.tolist())
