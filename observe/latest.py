"""What is compared with a baseline: the latest requests, with all their statistics as arrays."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from formats.baseline import STATISTICS
from observe.index import Index
from observe.queries import Window, models

__all__ = ["Latest", "current", "latest"]

_DAY: Final = 86_400_000


@dataclass(frozen=True)
class Latest:
    """Statistics of layers in single rows of requests, an entry each, the latest request first.

    Attributes:
        record: int64 [n], of which record of the index.
        row: int64 [n], of which row of it.
        layer: int64 [n], of which of `keys`.
        values: float64 [n, 5], in the order of `formats.baseline.STATISTICS`; NaN where the log
            has none.
        keys: of the layers, in execution order.
    """

    record: NDArray[np.int64]
    row: NDArray[np.int64]
    layer: NDArray[np.int64]
    values: NDArray[np.float64]
    keys: list[str]

    def of(self, key: str, statistic: str, most: int) -> NDArray[np.float64]:
        """Return the finite values of one statistic of a layer, at most the `most` latest."""
        own = self.values[self.layer == self.keys.index(key), STATISTICS.index(statistic)]
        finite: NDArray[np.float64] = own[np.isfinite(own)][:most]
        return finite


def current(index: Index) -> list[Window]:
    """Return the log's last day of each version of a model that has a record in it."""
    known = models(index)
    since = max((one.last for one in known), default=0) - _DAY
    return [Window(one.model, one.version, since) for one in known if one.last >= since]


def latest(index: Index, window: Window, requests: int, rows: int) -> Latest:
    """Return the rows of the latest requests that were answered.

    Steps of training are no requests. A layer without a value for each row (in a request of
    several rows, one without a row axis) is left out: a baseline is made of single rows.

    Args:
        index: to ask.
        window: which records.
        requests: at most so many.
        rows: no further requests once they have so many rows.
    """
    owner, first = window.owner("r")
    condition, second = window.condition("r")
    columns = ", ".join(f"v.{name}" for name in STATISTICS)
    newest = (
        f'SELECT id, time, "rows" FROM record r WHERE {owner} AND {condition} '
        "AND r.error IS NULL AND r.reason <> 'training' "
        f"ORDER BY r.time DESC, r.id DESC LIMIT {int(requests)}"
    )
    before = 'sum("rows") OVER (ORDER BY time DESC, id DESC) - "rows"'
    chosen = f"SELECT id, time FROM ({newest}) QUALIFY {before} < {int(rows)}"
    with index.cursor() as cursor:
        ends = cursor.execute(
            f"SELECT min(time), min(id), max(id) FROM ({chosen})", [*first, *second]
        ).fetchone()
        assert ends is not None
        if ends[0] is None:
            none = np.zeros(0, np.int64)
            return Latest(none, none, none, np.zeros((0, len(STATISTICS))), [])
        found = cursor.execute(
            f"SELECT v.record, v.row_number, l.key, {columns} FROM value v "
            f"JOIN ({chosen}) c ON c.id = v.record JOIN layer l ON l.id = v.layer "
            # What DuckDB can rule out by a block's least and greatest values, it never reads.
            "WHERE v.row_number >= 0 AND v.time >= ? AND v.record BETWEEN ? AND ? "
            "ORDER BY c.time DESC, v.record DESC, v.row_number",
            [*first, *second, *ends],
        ).fetchnumpy()
    names = found["key"].tolist()
    seen = set(names)
    keys = [key for key in index.order(window.model, window.version) if key in seen]
    place = {key: number for number, key in enumerate(keys)}
    # A layer that came in between the two questions has no place yet.
    known = np.array([name in place for name in names], dtype=bool)
    return Latest(
        np.asarray(found["record"], np.int64)[known],
        np.asarray(found["row_number"], np.int64)[known],
        np.array([place[name] for name in names if name in place], dtype=np.int64),
        np.stack([_filled(found[name]) for name in STATISTICS], axis=1)[known],
        keys,
    )


def _filled(column: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan)
