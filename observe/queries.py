"""What is asked of an index: windows of time, layers, requests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from observe.index import Index

__all__ = [
    "FLAGS",
    "GRADIENT_STATISTICS",
    "STATISTICS",
    "Heatmap",
    "LayerOverview",
    "LayerValue",
    "ModelSummary",
    "Request",
    "Row",
    "UnitReport",
    "Window",
    "flag_counts",
    "flagged",
    "gradient_heatmap",
    "heatmap",
    "heatmaps",
    "models",
    "overview",
    "recent",
    "records",
    "request",
    "rows_of",
    "units",
]

STATISTICS: Final = ("mean", "std", "min", "max", "zero_fraction", "non_finite")
"""What a heat map may show of a layer's output."""
GRADIENT_STATISTICS: Final = ("norm", "non_finite")

# How the requests of a column of the heat map are put together.
_TOGETHER: Final = {
    "mean": "avg(v.mean)",
    "std": "avg(v.std)",
    "min": "min(v.min)",
    "max": "max(v.max)",
    "zero_fraction": "avg(v.zero_fraction)",
    "non_finite": "sum(v.non_finite)",
    "norm": "avg(v.norm)",
}
_FLAGGED: Final = {
    "error": "r.error IS NOT NULL",
    "non_finite": "r.non_finite IS NOT NULL",
    "dead": "r.dead > 0",
    "flow": "r.flow > 0",
}
FLAGS: Final = tuple(_FLAGGED)
"""What is strange in a request; see `flagged`."""
_WIDTHS: Final = tuple(
    unit * factor
    for unit, factors in (
        (1, (1, 2, 5, 10, 20, 50, 100, 200, 500)),
        (1_000, (1, 2, 5, 10, 15, 30)),
        (60_000, (1, 2, 5, 10, 15, 30)),
        (3_600_000, (1, 2, 3, 6, 12)),
        (86_400_000, (1, 2, 7, 14, 28, 91, 364, 3_640)),
    )
    for factor in factors
)
"""Widths of a column that a person can read, in milliseconds."""


@dataclass(frozen=True)
class Window:
    """Which records are looked at.

    Attributes:
        model: the model's name.
        version: only this version; None for all.
        since: milliseconds since 1970, the first that counts; None for the log's beginning.
        until: the first that no longer counts; None for its end.
    """

    model: str
    version: str | None = None
    since: int | None = None
    until: int | None = None

    def condition(self, alias: str) -> tuple[str, list[Any]]:
        """Return SQL for the records, `alias` being the table with `time`, and its parameters."""
        parts, values = ["TRUE"], []
        for sign, bound in ((">=", self.since), ("<", self.until)):
            if bound is not None:
                parts.append(f"{alias}.time {sign} ?")
                values.append(bound)
        return " AND ".join(parts), values

    def owner(self, alias: str) -> tuple[str, list[Any]]:
        """Return SQL for the model and its version, `alias` having both, and its parameters."""
        if self.version is None:
            return f"{alias}.model = ?", [self.model]
        return f"{alias}.model = ? AND {alias}.version = ?", [self.model, self.version]


@dataclass(frozen=True)
class ModelSummary:
    """One version of a model in the log: how many records, and from when to when."""

    model: str
    version: str
    records: int
    errors: int
    first: int
    last: int


@dataclass(frozen=True)
class LayerOverview:
    """One layer over a window, a request counting once.

    Attributes:
        key: the layer's.
        records: requests in which it was measured.
        dead: of these, those in which all of it was zero.
        non_finite: values that were NaN or infinite, in all.
        statistics: over the requests in which it was finite: the average of `mean`, `std` and
            `zero_fraction`, the least `min`, the greatest `max`; None where there is none.
    """

    key: str
    records: int
    dead: int
    non_finite: int
    statistics: dict[str, float | None]


@dataclass(frozen=True)
class Heatmap:
    """One statistic of each layer against time.

    Attributes:
        statistic: which.
        layers: keys in execution order: the rows.
        starts: where each column begins, milliseconds since 1970.
        width: of a column, milliseconds.
        values: of each layer, of each column; None where there was nothing finite.
        records: requests in each column.
        measured: of each layer, of each column: requests that it was measured in.
        flagged: of these, those in which it was all zeros, or its gradient vanished or exploded.
    """

    statistic: str
    layers: list[str]
    starts: list[int]
    width: int
    values: list[list[float | None]]
    records: list[int]
    measured: list[list[int]] = field(default_factory=list)
    flagged: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class LayerValue:
    """Statistics of one layer in one request, or in one row of it; see `formats.statistics`.

    Attributes:
        key: the layer's.
        row: which row; -1 for several, or all.
        total: whether over the whole request.
        flag: "dead", "vanishing", "exploding" or None.
        statistics: by name, None where not finite.
    """

    key: str
    row: int
    total: bool
    flag: str | None
    statistics: dict[str, float | None]


@dataclass(frozen=True)
class Row:
    """One record of the log, without its layers.

    Attributes:
        id: in the index.
        time: milliseconds since 1970.
        dead: how many layers were all zeros.
        flow: how many gradients vanished or exploded.
    The others are those of `formats.activation.ActivationRecord`.
    """

    id: int
    time: int
    rows: int
    model: str
    version: str
    request_id: str
    traceparent: str | None
    correlation_id: str | None
    reason: str
    error: str | None
    non_finite: str | None
    gradient_of: str | None
    dead: int
    flow: int


@dataclass(frozen=True)
class Request:
    """One request with its layers, in execution order, and gradients where there are some."""

    row: Row
    layers: list[LayerValue]
    gradients: list[LayerValue]


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


def models(index: Index) -> list[ModelSummary]:
    """Return the models in the log and their versions, by name and version."""
    with index.cursor() as cursor:
        found = cursor.execute(
            "SELECT model, version, count(*), count(error), min(time), max(time) "
            "FROM record GROUP BY ALL ORDER BY 1, 2"
        ).fetchall()
    return [ModelSummary(*row) for row in found]


def overview(index: Index, window: Window) -> list[LayerOverview]:
    """Return each layer over a window, in execution order."""
    owner, first = window.owner("l")
    condition, second = window.condition("v")
    aggregates = ", ".join(_TOGETHER[name] for name in STATISTICS[:-1])
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT l.key, count(*), count(*) FILTER (v.dead), sum(v.non_finite), {aggregates} "
            "FROM value v JOIN layer l ON l.id = v.layer "
            f"WHERE v.total AND {owner} AND {condition} GROUP BY l.key",
            [*first, *second],
        ).fetchall()
    by_key = {
        row[0]: LayerOverview(
            row[0], row[1], row[2], int(row[3]), dict(zip(STATISTICS[:-1], row[4:], strict=True))
        )
        for row in found
    }
    return [by_key[key] for key in index.order(window.model, window.version) if key in by_key]


ROWS_NEEDED: Final = 200
"""Rows before a unit may be called dead, as in `handlers.units`."""


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


def heatmap(index: Index, window: Window, statistic: str, columns: int = 60) -> Heatmap:
    """Return one statistic of each layer against time.

    A column's value is put together from the totals of its requests: the average for `mean`,
    `std` and `zero_fraction`, the least `min`, the greatest `max`, the sum of `non_finite`. A
    column begins at a multiple of its width, which is the least of 1, 2, 5, ... ms, 1, 2, 5, ...
    s, min, h, days that makes no more than `columns` of them.

    Args:
        index: to ask.
        window: which records.
        statistic: one of `STATISTICS`.
        columns: the most there may be.
    """
    return _heatmaps(index, window, (statistic,), columns, "value")[statistic]


def heatmaps(index: Index, window: Window, columns: int = 60) -> dict[str, Heatmap]:
    """Return the heat maps of all statistics, asked for at once; see `heatmap`."""
    return _heatmaps(index, window, STATISTICS, columns, "value")


def gradient_heatmap(index: Index, window: Window, statistic: str, columns: int = 60) -> Heatmap:
    """Return the same of the layers' gradients: `norm` (average) or `non_finite` (sum)."""
    return _heatmaps(index, window, (statistic,), columns, "gradient")[statistic]


def _heatmaps(
    index: Index, window: Window, statistics: Sequence[str], columns: int, table: str
) -> dict[str, Heatmap]:
    owner, first = window.owner("l")
    record_owner, _ = window.owner("v")
    condition, second = window.condition("v")
    flag = "v.dead" if table == "value" else "v.flag > 0"
    asked = ", ".join(_TOGETHER[statistic] for statistic in statistics)
    with index.cursor() as cursor:
        ends = cursor.execute(
            f"SELECT min(v.time), max(v.time) FROM record v WHERE {record_owner} AND {condition}",
            [*first, *second],
        ).fetchone()
        if ends is None or ends[0] is None:
            return {statistic: Heatmap(statistic, [], [], 1, [], []) for statistic in statistics}
        width = _width(ends[0], ends[1], columns)
        start = ends[0] // width * width
        found = cursor.execute(
            f"SELECT l.key, v.time // {width}, count(*), count(*) FILTER ({flag}), {asked} "
            f"FROM {table} v JOIN layer l ON l.id = v.layer "
            f"WHERE v.total AND {owner} AND {condition} GROUP BY ALL",
            [*first, *second],
        ).fetchall()
        counted = cursor.execute(
            f"SELECT v.time // {width}, count(*) FROM record v "
            f"WHERE {record_owner} AND {condition} GROUP BY ALL",
            [*first, *second],
        ).fetchall()
    many = (ends[1] - start) // width + 1
    seen = {row[0] for row in found}
    layers = [key for key in index.order(window.model, window.version) if key in seen]
    place = {key: number for number, key in enumerate(layers)}
    values: list[list[list[float | None]]] = [[[None] * many for _ in layers] for _ in statistics]
    measured, flagged_in = ([[0] * many for _ in layers] for _ in range(2))
    records = [0] * many
    for key, column, number, marked, *numbers in found:
        at = column - start // width
        # A record that came in since the ends were asked for.
        if key in place and 0 <= at < many:
            measured[place[key]][at], flagged_in[place[key]][at] = number, marked
            for of_statistic, value in zip(values, numbers, strict=True):
                of_statistic[place[key]][at] = value if value is None else float(value)
    for column, number in counted:
        at = column - start // width
        if 0 <= at < many:
            records[at] = number
    starts = [start + number * width for number in range(many)]
    return {
        statistic: Heatmap(
            statistic, layers, starts, width, of_statistic, records, measured, flagged_in
        )
        for statistic, of_statistic in zip(statistics, values, strict=True)
    }


def _width(first: int, last: int, columns: int) -> int:
    for width in _WIDTHS:
        if last // width - first // width < columns:
            return width
    return max(1, -(-(last - first + 1) // max(1, columns - 1)))


def rows_of(
    index: Index,
    window: Window,
    statistic: str,
    *,
    latest: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return one statistic of each layer, a value for each row of each request.

    That is what a baseline is made of. Where a request of several rows has none for each row (a
    layer without a row axis), it is left out.

    Args:
        index: to ask.
        window: which records.
        statistic: one of `formats.baseline.STATISTICS`.
        latest: at most so many, the latest; None for all.

    Returns:
        By the layer's key: float64 [n], finite, the latest first.
    """
    owner, first = window.owner("l")
    condition, second = window.condition("v")
    if statistic not in STATISTICS:
        raise ValueError(f"{statistic} is no statistic; expected one of {', '.join(STATISTICS)}")
    found = {}
    with index.cursor() as cursor:
        newest = "row_number() OVER (PARTITION BY l.key ORDER BY v.time DESC)"
        limit = "" if latest is None else f"QUALIFY {newest} <= {int(latest)}"
        columns = cursor.execute(
            f"SELECT l.key AS key, v.{statistic} AS value "
            "FROM value v JOIN layer l ON l.id = v.layer "
            f"WHERE v.row_number >= 0 AND v.{statistic} IS NOT NULL AND {owner} AND {condition} "
            f"{limit} ORDER BY v.time DESC",
            [*first, *second],
        ).fetchnumpy()
    keys = np.asarray(columns["key"])
    values = np.asarray(columns["value"], dtype=np.float64)
    for key in index.order(window.model, window.version):
        chosen = values[keys == key]
        if len(chosen):
            found[key] = chosen
    return found


_ROW: Final = (
    'r.id, r.time, r."rows", r.model, r.version, r.request_id, r.traceparent, '
    "r.correlation_id, r.reason, r.error, r.non_finite, r.gradient_of, r.dead, r.flow"
)


def flagged(index: Index, window: Window, limit: int = 50, kind: str | None = None) -> list[Row]:
    """Return requests that something was strange in, the latest first.

    Args:
        index: to ask.
        window: which records.
        limit: the most there may be.
        kind: one of `FLAGS`: an error, a value that is not finite, a layer that was all zeros, or
            a gradient that vanished or exploded; None for any.
    """
    strange = " OR ".join(_FLAGGED.values()) if kind is None else _FLAGGED[kind]
    owner, first = window.owner("r")
    condition, second = window.condition("r")
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT {_ROW} FROM record r WHERE {owner} AND {condition} AND ({strange}) "
            "ORDER BY r.time DESC, r.id DESC LIMIT ?",
            [*first, *second, limit],
        ).fetchall()
    return [Row(*row) for row in found]


def flag_counts(index: Index, window: Window) -> dict[str, int]:
    """Return in how many requests each of `FLAGS` is."""
    owner, first = window.owner("r")
    condition, second = window.condition("r")
    counts = ", ".join(f"count(*) FILTER ({strange})" for strange in _FLAGGED.values())
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT {counts} FROM record r WHERE {owner} AND {condition}", [*first, *second]
        ).fetchone()
    return dict(zip(FLAGS, found or (), strict=True))


def recent(index: Index, window: Window, limit: int = 50) -> list[Row]:
    """Return the latest requests, flagged or not, the latest first."""
    owner, first = window.owner("r")
    condition, second = window.condition("r")
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT {_ROW} FROM record r WHERE {owner} AND {condition} "
            "ORDER BY r.time DESC, r.id DESC LIMIT ?",
            [*first, *second, limit],
        ).fetchall()
    return [Row(*row) for row in found]


def records(index: Index, ids: Sequence[int]) -> list[Row]:
    """Return records by their ids in the index, the latest first; without those that are gone."""
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT {_ROW} FROM record r WHERE list_contains(?, r.id) "
            "ORDER BY r.time DESC, r.id DESC",
            [list(ids)],
        ).fetchall()
    return [Row(*row) for row in found]


def request(index: Index, request_id: str, model: str | None = None) -> Request | None:
    """Return the latest record of a request with its layers; None where the log has none.

    Args:
        index: to ask.
        request_id: the server's id, or the client's correlation id.
        model: only of this model.
    """
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT {_ROW} FROM record r WHERE (r.request_id = ? OR r.correlation_id = ?) "
            "AND (CAST(? AS VARCHAR) IS NULL OR r.model = ?) "
            "ORDER BY r.request_id = ? DESC, r.time DESC LIMIT 1",
            [request_id, request_id, model, model, request_id],
        ).fetchone()
        if found is None:
            return None
        row = Row(*found)
        order = index.order(row.model, row.version)
        layers = _values(cursor, row.id, "value", order)
        gradients = _values(cursor, row.id, "gradient", order)
    return Request(row, layers, gradients)


def _values(cursor: Any, record: int, table: str, order: Sequence[str]) -> list[LayerValue]:
    names = ("elements", "mean", "std", "min", "max", "zero_fraction", "non_finite")
    flags: dict[Any, str | None] = {True: "dead", False: None}
    flag = "dead"
    if table == "gradient":
        names = ("elements", "norm", "mean", "std", "min", "max", "non_finite")
        flags = {0: None, 1: "vanishing", 2: "exploding"}
        flag = "flag"
    found = cursor.execute(
        f"SELECT l.key, v.row_number, v.total, v.{flag}, "
        f"{', '.join(f'v.{name}' for name in names)} "
        f"FROM {table} v JOIN layer l ON l.id = v.layer WHERE v.record = ? "
        "ORDER BY v.total DESC, v.row_number",
        [record],
    ).fetchall()
    place = {key: number for number, key in enumerate(order)}
    found.sort(key=lambda row: place.get(row[0], len(place)))
    return [
        LayerValue(key, row, total, flags[mark], dict(zip(names, numbers, strict=True)))
        for key, row, total, mark, *numbers in found
    ]
