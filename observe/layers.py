"""Layers over a window: their statistics, put together and row by row."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from observe.index import Index
from observe.window import Window

__all__ = ["STATISTICS", "TOGETHER", "LayerOverview", "overview", "rows_of"]

STATISTICS: Final = ("mean", "std", "min", "max", "zero_fraction", "non_finite")
"""What a heat map may show of a layer's output."""


# How the requests of a column of the heat map are put together.
TOGETHER: Final = {
    "mean": "avg(v.mean)",
    "std": "avg(v.std)",
    "min": "min(v.min)",
    "max": "max(v.max)",
    "zero_fraction": "avg(v.zero_fraction)",
    "non_finite": "sum(v.non_finite)",
    "norm": "avg(v.norm)",
}


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


def overview(index: Index, window: Window) -> list[LayerOverview]:
    """Return each layer over a window, in execution order."""
    owner, first = window.owner("l")
    condition, second = window.condition("v")
    aggregates = ", ".join(TOGETHER[name] for name in STATISTICS[:-1])
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
