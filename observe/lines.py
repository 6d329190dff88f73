"""Lines of an activation log as columns: what one part of a file holds."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, BinaryIO, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from formats import activation
from formats.units import FORMAT as UNITS
from observe.log_files import Part
from observe.log_time import in_milliseconds
from observe.unit_lines import Units, read_units

__all__ = ["Columns", "Moved", "decode", "merge_order", "read_part"]

_LONGEST_LINE: Final = 64 << 20
_MOST: Final = 1 << 40
"""More rows or values than this is no count; sums of many stay within 64 bits."""
_STATISTICS: Final = itemgetter(
    "elements", "mean", "std", "min", "max", "zero_fraction", "non_finite"
)
_GRADIENT: Final = itemgetter("elements", "norm", "mean", "std", "min", "max", "non_finite")


class Moved(OSError):
    """The file at the path is no longer the one that was meant."""


@dataclass
class Columns:
    """Records of an activation log, column by column.

    Attributes:
        record: columns of one entry for each record: `time` (int64, milliseconds since 1970),
            `rows` (int64), and lists of text or None: `model`, `version`, `request_id`,
            `traceparent`, `correlation_id`, `reason`, `error`, `non_finite`, `gradient_of`.
        layers: (model, version, layer's key, "layer" or "gradient") that entries below count in.
        value: float64 [n, 7], statistics in the order of `formats.statistics.LayerStatistics`.
        value_of: int64 [n, 5]: index of the record, of the layer, row (-1: over several), whether
            it is the request's total, whether it was all zeros (flagged dead).
        gradient: float64 [m, 7]: elements, norm, mean, std, min, max, non_finite.
        gradient_of: int64 [m, 5]: record, layer, row, total, flag (0, 1 vanishing, 2 exploding).
        units: what lines about units tell, an entry for each layer of each line.
        order: of each (model, version), its layers in execution order.
        skipped: by reason, how many lines were no record.
    """

    record: dict[str, Any] = field(default_factory=dict)
    layers: list[tuple[str, str, str, str]] = field(default_factory=list)
    value: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 7)))
    value_of: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 5), np.int64))
    gradient: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 7)))
    gradient_of: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 5), np.int64))
    units: list[Units] = field(default_factory=list)
    order: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


def read_part(part: Part) -> Columns:
    """Read and decode a part of a file.

    Raises:
        Moved: another file is there now.
        OSError: it cannot be read.
    """
    try:
        file = part.path.open("rb")
    except FileNotFoundError:
        raise Moved(str(part.path)) from None
    with file:
        if os.fstat(file.fileno()).st_ino != part.inode:
            raise Moved(str(part.path))
        return decode(_lines(file, part))


def decode(lines: Iterable[bytes]) -> Columns:
    """Decode lines; what is no activation record is counted and left out."""
    lines = list(lines)
    try:
        return _Builder(strict=False).build(lines)
    except (TypeError, ValueError, OverflowError):
        # A text where a number should be, found only when all are put together: look for it.
        return _Builder(strict=True).build(lines)


def merge_order(known: list[str], seen: Sequence[str]) -> None:
    """Put keys that `known` lacks behind the one that they followed when they were seen."""
    places = set(known)
    last: str | None = None
    behind: dict[str | None, list[str]] = {}
    for key in dict.fromkeys(seen):
        if key in places:
            last = key
        else:
            behind.setdefault(last, []).append(key)
    if behind:
        merged = behind.pop(None, [])
        for key in known:
            merged += [key, *behind.get(key, ())]
        known[:] = merged


def _lines(file: BinaryIO, part: Part) -> Iterator[bytes]:
    file.seek(part.start)
    begin = part.start
    if not part.first:
        # The part before reads the line that reaches into this one; it may end just here.
        file.seek(part.start - 1)
        begin += _line(file)[1] - 1
    if begin >= part.end:
        return
    *whole, last = file.read(part.end - begin).split(b"\n")
    yield from whole
    if last:
        rest, length = _line(file)
        yield last + rest if len(last) + length <= _LONGEST_LINE else b"too long"


def _line(file: BinaryIO) -> tuple[bytes, int]:
    """Return the next line and its length; of one that is too long, a word that is no record."""
    line = file.readline(_LONGEST_LINE)
    length = len(line)
    if length < _LONGEST_LINE or line.endswith(b"\n"):
        return line, length
    while not line.endswith(b"\n") and (line := file.readline(_LONGEST_LINE)):
        length += len(line)
    return b"too long", length


_RECORD: Final = ("model", "version", "request_id", "traceparent", "correlation_id", "reason",
    "error", "non_finite", "gradient_of")  # fmt: skip


_TEXTS: Final = frozenset({str, type(None)})
_SHARED: Final = itemgetter("model", "model_version", "reason", "error")


@dataclass(frozen=True)
class _Shape:
    """Layers that records have in common: their numbers, and `of` for a request of one row."""

    codes: list[int]
    single: NDArray[np.int64]


class _Numbers:
    """Statistics of one kind, and what they are of."""

    def __init__(self) -> None:
        self._values: list[tuple[Any, ...]] = []
        self._records: list[int] = []
        self._of: list[NDArray[np.int64]] = []
        self._kept = 0

    def add(self, record: int, values: Iterable[tuple[Any, ...]], of: NDArray[np.int64]) -> None:
        """Add a record's values; `of`, int64 [n, 4], has layer, row, total and flag of each."""
        self._values.extend(values)
        self._records.append(record)
        self._of.append(of)
        self._kept = len(self._values)

    def forget(self, record: int) -> None:
        """Undo what was added for the last record, if anything was."""
        if self._records and self._records[-1] == record:
            self._records.pop()
            self._kept -= len(self._of.pop())
        del self._values[self._kept :]

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the values, float64 [n, 7], and of which record, layer and so on, int64 [n, 5].

        Raises:
            TypeError, ValueError, OverflowError: something is no number.
        """
        values = _table(self._values)
        if not self._of:
            return values, np.zeros((0, 5), np.int64)
        of = np.concatenate(self._of)
        records = np.repeat(self._records, [len(one) for one in self._of])
        return values, np.column_stack((records, of))


class _Builder:
    """Takes records apart.

    Args:
        strict: whether each number is looked at by itself, which takes longer.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._records: list[tuple[Any, ...]] = []
        self._words: dict[str | None, str | None] = {}
        self._layers: dict[tuple[str, str, str, str], int] = {}
        self._order: dict[tuple[str, str], list[str]] = {}
        self._seen: dict[tuple[tuple[str, str], str, tuple[str, ...]], _Shape] = {}
        self._numbers = {"layer": _Numbers(), "gradient": _Numbers()}
        self._units: list[Units] = []
        self._skipped: dict[str, int] = {}

    def _take(self, line: bytes) -> None:
        """Add a line's record, or count why there is none."""
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            if line.strip():
                self._skip("not JSON")
            return
        if type(record) is not dict or record.get("format") != activation.FORMAT:
            if type(record) is dict and record.get("format") == UNITS:
                self._take_units(record)
            else:
                self._skip("no activation record")
        elif record.get("version") != activation.VERSION:
            self._skip("of another version")
        else:
            try:
                self._add(record)
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
                for numbers in self._numbers.values():
                    numbers.forget(len(self._records))
                self._skip("damaged record")

    def build(self, lines: Iterable[bytes]) -> Columns:
        """Return the lines' records.

        Raises:
            TypeError, ValueError, OverflowError: something is no number; never when strict.
        """
        for line in lines:
            self._take(line)
        value, value_of = self._numbers["layer"].arrays()
        gradient, gradient_of = self._numbers["gradient"].arrays()
        columns = [list(column) for column in zip(*self._records, strict=True)]
        times, rows, *texts = columns or [[] for _ in range(2 + len(_RECORD))]
        return Columns(
            record={
                "time": in_milliseconds(times),
                "rows": np.array(rows, dtype=np.int64),
                **dict(zip(_RECORD, texts, strict=True)),
            },
            layers=list(self._layers),
            value=value,
            value_of=value_of,
            gradient=gradient,
            gradient_of=gradient_of,
            units=self._units,
            order=self._order,
            skipped=self._skipped,
        )

    def _add(self, record: Mapping[str, Any]) -> None:
        time = record["time"]
        rows = int(record["rows"])
        if not 0 <= rows < _MOST:
            raise ValueError(rows)
        # What many records share is kept once, which makes less to hand to the index.
        same = self._words.setdefault
        model, version, reason, error = _SHARED(record)
        texts = (
            same(model, model),
            same(version, version),
            record["request_id"],
            record["traceparent"],
            record["correlation_id"],
            same(reason, reason),
            same(error, error),
        )
        if not _TEXTS.issuperset(map(type, texts)):
            raise TypeError(texts)
        if model is None or version is None or texts[2] is None:
            raise TypeError("model, model_version and request_id are text")
        non_finite = gradient_of = None
        owner = (model, version)
        if (layers := record.get("layers")) is not None:
            flags = record["flags"]
            non_finite = flags["non_finite"]
            if non_finite is not None and type(non_finite) is not str:
                raise TypeError(non_finite)
            marked = dict.fromkeys(flags["dead"], 1)
            self._add_layers("layer", owner, rows, layers, marked)
        if (gradients := record.get("gradients")) is not None:
            gradient_of = gradients["of"]
            if type(gradient_of) is not str:
                raise TypeError(gradient_of)
            flags = gradients["flags"]
            marked = dict.fromkeys(flags["vanishing"], 1) | dict.fromkeys(flags["exploding"], 2)
            self._add_layers("gradient", owner, rows, gradients["layers"], marked)
        if self._strict:
            in_milliseconds([time])
        self._records.append((time, rows, *texts, non_finite, gradient_of))

    def _take_units(self, fields: dict[str, Any]) -> None:
        """Add a line about units, or count why it is none."""
        found = read_units(fields)
        if isinstance(found, str):
            self._skip(found)
        else:
            self._units += found

    def _add_layers(
        self,
        kind: str,
        owner: tuple[str, str],
        rows: int,
        layers: Mapping[str, Any],
        marked: Mapping[str, int],
    ) -> None:
        """Add the statistics of one record's layers."""
        pick = _STATISTICS if kind == "layer" else _GRADIENT
        numbers = self._numbers[kind]
        shape = self._shape(owner, kind, tuple(layers))
        if rows == 1 and not marked and not self._strict:
            # Nearly all records are like this, and a log has millions.
            numbers.add(len(self._records), map(pick, layers.values()), shape.single)
            return
        single = 0 if rows == 1 else -1
        values = []
        of = []
        for code, (key, layer) in zip(shape.codes, layers.items(), strict=True):
            values.append(pick(layer))
            of.append((code, single, 1, marked.get(key, 0)))
            for row, statistics in enumerate(layer.get("rows", ())):
                values.append(pick(statistics))
                of.append((code, row, 0, 0))
        if self._strict:
            for picked in values:
                _check(picked)
        numbers.add(len(self._records), values, np.array(of, dtype=np.int64).reshape(-1, 4))

    def _shape(self, owner: tuple[str, str], kind: str, keys: tuple[str, ...]) -> "_Shape":
        """Return the layers' numbers; the same layers in the same order are looked up once."""
        shape = self._seen.get((owner, kind, keys))
        if shape is None:
            codes = [
                self._layers.setdefault((*owner, key, kind), len(self._layers)) for key in keys
            ]
            single = np.array([(code, 0, 1, 0) for code in codes], dtype=np.int64).reshape(-1, 4)
            shape = self._seen[owner, kind, keys] = _Shape(codes, single)
            merge_order(self._order.setdefault(owner, []), keys)
        return shape

    def _skip(self, reason: str) -> None:
        self._skipped[reason] = self._skipped.get(reason, 0) + 1


def _check(picked: tuple[Any, ...]) -> None:
    _table([[None if number is None else float(number) for number in picked]])


def _table(numbers: list[Any]) -> NDArray[np.float64]:
    """Return statistics as float64 [n, 7]; both kinds have a count at either end.

    Raises:
        TypeError, ValueError, OverflowError: one is no number, or no count.
    """
    table = np.array(numbers, dtype=np.float64).reshape(-1, 7)
    counts = table[:, [0, 6]]
    if ((counts < 0) | (counts >= _MOST)).any():
        raise ValueError("a count is out of range")
    return table
