"""Requests of an index: the latest, those that are flagged, and one with its layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from observe.index import Index
from observe.window import Window

__all__ = [
    "FLAGGED",
    "FLAGS",
    "LayerValue",
    "Request",
    "Row",
    "flag_counts",
    "flagged",
    "recent",
    "records",
    "request",
]

FLAGGED: Final = {
    "error": "r.error IS NOT NULL",
    "non_finite": "r.non_finite IS NOT NULL",
    "dead": "r.dead > 0",
    "flow": "r.flow > 0",
}

FLAGS: Final = tuple(FLAGGED)
"""What is strange in a request; see `flagged`."""


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
    strange = " OR ".join(FLAGGED.values()) if kind is None else FLAGGED[kind]
    return _latest(index, window, limit, strange)


def flag_counts(index: Index, window: Window) -> dict[str, int]:
    """Return in how many requests each of `FLAGS` is."""
    owner, first = window.owner("r")
    condition, second = window.condition("r")
    counts = ", ".join(f"count(*) FILTER ({strange})" for strange in FLAGGED.values())
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT {counts} FROM record r WHERE {owner} AND {condition}", [*first, *second]
        ).fetchone()
    return dict(zip(FLAGS, found or (), strict=True))


def recent(index: Index, window: Window, limit: int = 50) -> list[Row]:
    """Return the latest requests, flagged or not, the latest first."""
    return _latest(index, window, limit, "TRUE")


def _latest(index: Index, window: Window, limit: int, wanted: str) -> list[Row]:
    owner, first = window.owner("r")
    condition, second = window.condition("r")
    with index.cursor() as cursor:
        found = cursor.execute(
            f"SELECT {_ROW} FROM record r WHERE {owner} AND {condition} AND ({wanted}) "
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
