"""What a report rests its answers on: where NaN began, and how gradients flowed."""

from dataclasses import dataclass
from typing import Any

from observe.index import Index
from observe.queries import Window

__all__ = [
    "Counted",
    "LayerFlow",
    "Producer",
    "counted",
    "explained",
    "gradient_flow",
    "inherited",
    "producers",
]


@dataclass(frozen=True)
class Counted:
    """One version of a model in the part of the log that a report is about.

    Attributes:
        model: its name.
        version: its version.
        records: how many.
        errors: of these, those that ended in an error.
        rows: of all requests together.
        first: milliseconds since 1970.
        last: likewise.
        reasons: why records were written, and how many for it.
    """

    model: str
    version: str
    records: int
    errors: int
    rows: int
    first: int
    last: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class Producer:
    """A layer that made NaN or an infinity of finite inputs.

    Attributes:
        key: the layer's.
        requests: in how many.
        first: when first, milliseconds since 1970.
        last: when last.
        examples: ids of the first few requests.
    """

    key: str
    requests: int
    first: int
    last: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class LayerFlow:
    """The gradients at one layer.

    Attributes:
        key: the layer's.
        requests: in which there is one.
        norm: the median of its norm; None where none was finite.
        least: the least norm.
        greatest: the greatest.
        vanishing: in how many requests it was lost.
        exploding: in how many it had grown too much, or was not finite.
    """

    key: str
    requests: int
    norm: float | None
    least: float | None
    greatest: float | None
    vanishing: int
    exploding: int


def counted(index: Index, since: int | None, until: int | None) -> list[Counted]:
    """Return the models and versions with records from `since` to before `until`."""
    condition, values = Window("", None, since, until).condition("r")
    with index.cursor() as cursor:
        found = cursor.execute(
            'SELECT model, version, count(*), count(error), sum(r."rows"), min(time), max(time) '
            f"FROM record r WHERE {condition} GROUP BY model, version ORDER BY model, version",
            values,
        ).fetchall()
        reasons = cursor.execute(
            "SELECT model, version, coalesce(reason, 'unknown'), count(*) FROM record r "
            f"WHERE {condition} GROUP BY ALL ORDER BY 4 DESC, 3",
            values,
        ).fetchall()
    return [
        Counted(
            model,
            version,
            records,
            errors,
            int(rows),
            first,
            last,
            {reason: number for *owner, reason, number in reasons if owner == [model, version]},
        )
        for model, version, records, errors, rows, first, last in found
    ]


def producers(index: Index, window: Window, examples: int = 5) -> list[Producer]:
    """Return the layers that made what was not finite, the one that did so first at the front."""
    source, values = _records(window)
    found = _all(
        index,
        "SELECT r.non_finite, count(*), min(r.time), max(r.time), "
        f"list(r.request_id ORDER BY r.time, r.id)[1:{examples:d}] "
        f"{source} AND r.non_finite IS NOT NULL GROUP BY r.non_finite ORDER BY 3, 1",
        values,
    )
    return [
        Producer(key, requests, first, last, tuple(ids))
        for key, requests, first, last, ids in found
    ]


def inherited(index: Index, window: Window) -> int:
    """Return in how many requests values were not finite though no layer began it.

    Their inputs were not finite, or a layer that could not be hooked began it.
    """
    source, values = _records(window)
    found = _all(
        index,
        f"SELECT count(*) {source} AND r.non_finite IS NULL AND r.id IN "
        "(SELECT v.record FROM value v WHERE v.total AND v.non_finite > 0)",
        values,
    )
    return int(found[0][0])


def explained(index: Index, window: Window) -> dict[str, int]:
    """Return of what gradients were taken, and in how many requests."""
    source, values = _records(window)
    return dict(
        _all(
            index,
            f"SELECT r.gradient_of, count(*) {source} AND r.gradient_of IS NOT NULL "
            "GROUP BY r.gradient_of ORDER BY 2 DESC, 1",
            values,
        )
    )


def gradient_flow(index: Index, window: Window) -> list[LayerFlow]:
    """Return the gradients at each layer that has some, in the order of the forward pass."""
    owner, first = window.owner("l")
    condition, second = window.condition("g")
    found = _all(
        index,
        "SELECT l.key, count(*), median(g.norm), min(g.norm), max(g.norm), "
        "count(*) FILTER (g.flag = 1), count(*) FILTER (g.flag = 2) "
        "FROM gradient g JOIN layer l ON l.id = g.layer "
        f"WHERE g.total AND {owner} AND {condition} GROUP BY l.key",
        [*first, *second],
    )
    by_key = {row[0]: LayerFlow(*row) for row in found}
    return [by_key[key] for key in index.order(window.model, window.version) if key in by_key]


def _records(window: Window) -> tuple[str, list[Any]]:
    owner, first = window.owner("r")
    condition, second = window.condition("r")
    return f"FROM record r WHERE {owner} AND {condition}", [*first, *second]


def _all(index: Index, query: str, values: list[Any]) -> list[Any]:
    with index.cursor() as cursor:
        return cursor.execute(query, values).fetchall()
