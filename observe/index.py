"""The index of an activation log: its records in DuckDB, a million of them asked at once."""

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np

from observe.lines import Columns, merge_order
from observe.unit_lines import Units

__all__ = ["Index"]

_SCHEMA: Final = """
CREATE TABLE record (
    id BIGINT, time BIGINT, "rows" BIGINT, model VARCHAR, version VARCHAR, request_id VARCHAR,
    traceparent VARCHAR, correlation_id VARCHAR, reason VARCHAR, error VARCHAR,
    non_finite VARCHAR, gradient_of VARCHAR, dead INTEGER, flow INTEGER);
CREATE TABLE layer (id INTEGER, model VARCHAR, version VARCHAR, key VARCHAR, kind VARCHAR);
CREATE TABLE value (
    record BIGINT, time BIGINT, layer INTEGER, row_number INTEGER, total BOOLEAN, dead BOOLEAN,
    elements BIGINT, mean DOUBLE, std DOUBLE, min DOUBLE, max DOUBLE, zero_fraction DOUBLE,
    non_finite BIGINT);
CREATE TABLE gradient (
    record BIGINT, time BIGINT, layer INTEGER, row_number INTEGER, total BOOLEAN, flag UTINYINT,
    elements BIGINT, norm DOUBLE, mean DOUBLE, std DOUBLE, min DOUBLE, max DOUBLE,
    non_finite BIGINT);
CREATE TABLE unit (
    time BIGINT, layer INTEGER, worker VARCHAR, "rows" BIGINT, units BIGINT, fraction DOUBLE,
    dead BIGINT[], active BIGINT[]);
"""
_VALUE: Final = ("elements", "mean", "std", "min", "max", "zero_fraction", "non_finite")
_GRADIENT: Final = ("elements", "norm", "mean", "std", "min", "max", "non_finite")
_MEMORY: Final = "1GB"


@dataclass
class Index:
    """Records of an activation log, to be asked with SQL while more are added.

    Tables: `record`, a line each; `layer`, a name each for (model, version, key, kind);
    `value` and `gradient`, the statistics of one layer in one request: `total` over the whole
    request, `row_number` of one row (-1 where it is over several; a request of one row has a
    single entry that is both); `unit`, what a worker had counted of a layer's units by then.
    `time` is in milliseconds since 1970. What was not finite in the
    log is NULL.

    Args:
        path: of the database, a file that does not exist; None keeps it in memory (up to 1 GB,
            then in temporary files).
        keep: records that are kept; the oldest go first.
    """

    path: Path | None = None
    keep: int = 2_000_000
    generation: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Open the database."""
        # What does not fit into memory; without a name for it DuckDB takes the working folder.
        spill = tempfile.mkdtemp(prefix="vitrine-observe-")
        self._remove = weakref.finalize(self, shutil.rmtree, spill, ignore_errors=True)
        self._database = duckdb.connect(
            str(self.path) if self.path else ":memory:",
            config={"memory_limit": _MEMORY, "temp_directory": spill},
        )
        self._database.execute(_SCHEMA)
        self._writing = threading.Lock()
        self._next = 0
        self._count = 0
        self._layers: dict[tuple[str, str, str, str], int] = {}
        self._order: dict[tuple[str, str], list[str]] = {}
        self.skipped: dict[str, int] = {}

    def __len__(self) -> int:
        """Return how many records there are."""
        return self._count

    def close(self) -> None:
        """Close the database."""
        self._database.close()
        self._remove()

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a connection to read with, for one thread."""
        cursor = self._database.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def order(self, model: str, version: str | None) -> list[str]:
        """Return the keys of a model's layers in execution order; of all versions for None."""
        merged: list[str] = []
        for (name, number), keys in list(self._order.items()):
            if name == model and version in (None, number):
                merge_order(merged, keys)
        return merged

    def add(self, columns: Columns) -> None:
        """Add records; readers see all of them or none."""
        with self._writing:
            for reason, number in columns.skipped.items():
                self.skipped[reason] = self.skipped.get(reason, 0) + number
            for owner, keys in columns.order.items():
                merge_order(self._order.setdefault(owner, []), keys)
            times = columns.record.get("time", ())
            if len(times):
                self._insert(columns, times)
                self._forget()
            if columns.units:
                self._insert_units(columns.units)
            self.generation += 1

    def _insert(self, columns: Columns, times: Any) -> None:
        first = self._next
        new = self._new_layers(columns.layers)
        codes = np.array([self._layers[name] for name in columns.layers], dtype=np.int32)
        dead = np.bincount(columns.value_of[columns.value_of[:, 4] == 1, 0], minlength=len(times))
        flow = np.bincount(
            columns.gradient_of[columns.gradient_of[:, 4] > 0, 0], minlength=len(times)
        )
        record = {
            "id": np.arange(first, first + len(times)),
            "time": times,
            "rows": columns.record["rows"],
            **{
                name: np.array(texts, dtype=object)
                for name, texts in columns.record.items()
                if name not in ("time", "rows")
            },
            "dead": dead,
            "flow": flow,
        }
        with self._all_or_nothing(new):
            self._append("record", record)
            for table, names, numbers, of in (
                ("value", _VALUE, columns.value, columns.value_of),
                ("gradient", _GRADIENT, columns.gradient, columns.gradient_of),
            ):
                if len(numbers):
                    entries = _entries(names, numbers, of, times, codes)
                    entries["record"] += first
                    self._append(table, entries)
        self._next += len(times)
        self._count += len(times)

    def _new_layers(self, names: Iterable[tuple[str, str, str, str]]) -> list[tuple[Any, ...]]:
        """Number layers that were not seen before; return them as lines of the table."""
        new = [name for name in dict.fromkeys(names) if name not in self._layers]
        for name in new:
            self._layers[name] = len(self._layers)
        return [(self._layers[name], *name) for name in new]

    def _insert_units(self, units: Sequence[Units]) -> None:
        new = self._new_layers(one.layer for one in units)
        counted = [one.counted for one in units]
        with self._all_or_nothing(new):
            self._append(
                "unit",
                {
                    "time": np.array([one.time for one in units], dtype=np.int64),
                    "layer": np.array([self._layers[one.layer] for one in units], dtype=np.int32),
                    "worker": _objects(one.worker for one in units),
                    "rows": np.array([one.rows for one in counted], dtype=np.int64),
                    "units": np.array([one.units for one in counted], dtype=np.int64),
                    "fraction": np.array([one.active_fraction for one in counted]),
                    "dead": _objects(_list(one.dead) for one in counted),
                    "active": _objects(_list(one.active) for one in counted),
                },
            )

    @contextmanager
    def _all_or_nothing(self, new: Sequence[tuple[Any, ...]]) -> Iterator[None]:
        """Add new layers, and what is appended inside; when that fails, nothing."""
        connection = self._database
        connection.execute("BEGIN")
        try:
            if new:
                connection.executemany("INSERT INTO layer VALUES (?, ?, ?, ?, ?)", new)
            yield
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            # The table has no line of them, so that they are new again next time.
            for _, *name in new:
                del self._layers[tuple(name)]
            raise

    def _append(self, table: str, columns: dict[str, Any]) -> None:
        self._database.register("part", columns)
        try:
            self._database.execute(f"INSERT INTO {table} BY POSITION SELECT * FROM part")
        finally:
            self._database.unregister("part")

    def _forget(self) -> None:
        # A tenth more than is kept, so that it is not done for each line.
        if self._count <= self.keep * 1.1:
            return
        row = self._database.execute(
            "SELECT time FROM record ORDER BY time DESC OFFSET ? LIMIT 1", [self.keep]
        ).fetchone()
        assert row is not None
        for table in ("value", "gradient", "unit", "record"):
            self._database.execute(f"DELETE FROM {table} WHERE time <= ?", list(row))
        counted = self._database.execute("SELECT count(*) FROM record").fetchone()
        assert counted is not None
        self._count = counted[0]


def _entries(
    names: tuple[str, ...], numbers: Any, of: Any, times: Any, codes: Any
) -> dict[str, Any]:
    flag = of[:, 4]
    return {
        "record": of[:, 0],
        "time": times[of[:, 0]],
        "layer": codes[of[:, 1]],
        "row_number": of[:, 2].astype(np.int32),
        "total": of[:, 3] == 1,
        # Of a value: whether the layer was all zeros. Of a gradient: what is wrong with it.
        "flag": flag == 1 if names is _VALUE else flag.astype(np.uint8),
        **{
            name: _counts(numbers[:, n])
            if name in ("elements", "non_finite")
            else _measured(numbers[:, n])
            for n, name in enumerate(names)
        },
    }


def _objects(values: Iterable[Any]) -> Any:
    given = list(values)
    array = np.empty(len(given), dtype=object)
    array[:] = given
    return array


def _list(indices: Sequence[int] | None) -> list[int] | None:
    return None if indices is None else list(indices)


def _counts(numbers: Any) -> Any:
    return np.nan_to_num(numbers, nan=0.0).astype(np.int64)


def _measured(numbers: Any) -> Any:
    return np.ma.masked_invalid(np.ascontiguousarray(numbers))
