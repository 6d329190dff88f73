"""Looking inside one request: what the compiled hooks recorded, sliced to the request's rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np
import torch

from formats.activation import Activations
from formats.layers import Layer
from formats.observation import Recorded, is_suspect, merge
from formats.statistics import LayerRecord, LayerStatistics
from handlers.errors import RequestError
from handlers.values import Array

__all__ = [
    "HEADER",
    "Inspection",
    "Observation",
    "Wanted",
    "layer_of",
    "limited",
    "only",
    "parse_header",
    "select",
    "to_lists",
]

HEADER: Final = "x-activations"
RAW_LIMIT: Final = 1_000_000
"""The most values that raw activations may hold in one answer."""

_EXPECTED: Final = "stats, or stats; layers=GLOB,..., or raw; layers=GLOB,..."


@dataclass(frozen=True)
class Wanted:
    """What a request asks to see.

    Attributes:
        stats: names of the layers whose statistics are wanted.
        raw: names of the layers whose activations themselves are wanted.
    """

    stats: frozenset[str] = frozenset()
    raw: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Observation:
    """What one run recorded, all rows of it.

    Attributes:
        records: what the numbers belong to, in execution order.
        vectors: five per record.
        rows: how many rows the run had; 1 for a model without a row axis.
    """

    records: list[Recorded]
    vectors: list[Sequence[float]]
    rows: int

    def units(self, record: Recorded, start: int, stop: int) -> range:
        """Return the units of a record that belong to rows `start` to `stop`."""
        if record.axis < 0:
            return range(record.units)
        share = record.units // self.rows
        return range(start * share, stop * share)

    @property
    def divides(self) -> bool:
        """Whether every output recorded can be divided among the rows of the run.

        Where a branch depends on the batch, the layers in it have no known row axis, and what
        they put out is that of everybody.
        """
        return all(one.axis >= 0 and one.units % self.rows == 0 for one in self.records)

    def suspects(self, start: int, stop: int) -> bool:
        """Tell whether a value that is not finite shows in these rows."""
        return any(
            is_suspect(self.vectors[one.first : one.first + 5], self.units(one, start, stop))
            for one in self.records
        )

    def activations(self, start: int, stop: int, inspection: "Inspection | None") -> Activations:
        """Return the statistics of rows `start` to `stop` in all observed layers.

        Args:
            start: the first row.
            stop: the row after the last.
            inspection: these rows run again by themselves, where a value was not finite.
        """
        layers = {}
        dead = []
        for one in self.records:
            record = self._record(one, start, stop, inspection)
            if record.total.zero_fraction == 1:
                dead.append(one.key)
            layers[one.key] = record
        producer = inspection.producer() if inspection is not None else None
        return Activations(layers, producer, tuple(dead))

    def _record(
        self, one: Recorded, start: int, stop: int, inspection: "Inspection | None"
    ) -> LayerRecord[LayerStatistics]:
        five = self.vectors[one.first : one.first + 5]

        def statistics(first: int, last: int) -> Any:
            units = self.units(one, first, last)
            counts = None
            if inspection is not None:
                counts = inspection.counts(one, first - start, last - start)
            return merge(five, one.count, units, counts)

        rows: tuple[Any, ...] = ()
        if one.axis >= 0 and stop - start > 1:
            rows = tuple(statistics(row, row + 1) for row in range(start, stop))
        return LayerRecord(statistics(start, stop), rows)


@dataclass(frozen=True)
class Inspection:
    """One request's rows, run again with every layer counting what is zero and what not finite.

    Attributes:
        records: of every hooked layer, in execution order.
        vectors: two per record.
        rows: how many rows the request had.
    """

    records: list[Recorded]
    vectors: list[list[float]]
    rows: int

    def producer(self) -> str | None:
        """Return the first layer that made a value that is not finite from finite inputs."""
        for one in self.records:
            if one.finite_inputs and sum(self.vectors[one.first + 1]) > 0:
                return one.key
        return None

    def counts(self, wanted: Recorded, start: int, stop: int) -> tuple[int, int] | None:
        """Return how many values are zero and not finite in some rows of a layer's output."""
        for one in self.records:
            if one.key == wanted.key:
                share = one.units // self.rows if one.axis >= 0 else one.units
                units = slice(start * share, stop * share) if one.axis >= 0 else slice(None)
                zeros, strange = self.vectors[one.first : one.first + 2]
                return int(sum(zeros[units])), int(sum(strange[units]))
        return None


def parse_header(headers: Mapping[str, str], layers: Sequence[Layer]) -> Wanted | None:
    """Read the X-Activations header.

    Args:
        headers: of the request, with lower-case names.
        layers: those that hooks are compiled into. Statistics are taken of the chosen ones;
            raw activations can be had of all.

    Returns:
        What is wanted, or None when nothing is.

    Raises:
        RequestError: the header is not understood, or names no layer.
    """
    text = headers.get(HEADER)
    if text is None or not text.strip():
        return None
    kind, _, rest = text.partition(";")
    key, _, globs = rest.strip().partition("=")
    kind = kind.strip().lower()
    if kind not in ("stats", "raw") or (rest.strip() and key.strip().lower() != "layers"):
        raise _refused(f"X-Activations: {text!a} is not understood", _EXPECTED)
    names = _observable(layers, raw=kind == "raw")
    patterns = [glob.strip() for glob in globs.split(",") if glob.strip()]
    if kind == "stats":
        return Wanted(stats=_matching(patterns, names) if patterns else frozenset(names))
    if not patterns:
        raise _refused("raw activations of which layers?", "raw; layers=GLOB,...")
    return Wanted(raw=_matching(patterns, names))


def select(patterns: Sequence[str], layers: Sequence[Layer], *, raw: bool) -> frozenset[str]:
    """Choose layers by name.

    Args:
        patterns: globs.
        layers: those that hooks are compiled into.
        raw: whether to choose among all of them, rather than among the observed ones.

    Returns:
        Their names.

    Raises:
        RequestError: a glob fits no layer, or the model has none.
    """
    return _matching(patterns, _observable(layers, raw=raw))


def _observable(layers: Sequence[Layer], *, raw: bool) -> list[str]:
    names = [layer.name for layer in layers if layer.chosen or raw]
    if not names:
        raise _refused("this model has no layers that can be observed", "a scripted model")
    return names


def _matching(patterns: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    missing = [glob for glob in patterns if not any(fnmatchcase(name, glob) for name in names)]
    if missing:
        raise _refused(f"no observed layer is named {missing[0]!a}", ", ".join(names))
    return frozenset(name for name in names for glob in patterns if fnmatchcase(name, glob))


def _refused(message: str, expected: str) -> RequestError:
    return RequestError("bad_activations", message[:300], expected=expected[:1000])


def only(seen: Activations, wanted: frozenset[str]) -> Activations:
    """Return the same with the statistics of some layers only; the flags stay those of all."""
    kept = {key: record for key, record in seen.layers.items() if layer_of(key) in wanted}
    return replace(seen, layers=kept)


def layer_of(key: str) -> str:
    """Return the name of the layer that an activation key belongs to."""
    return key.partition("@")[0].partition(":")[0]


def limited(raw: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return raw activations, if they can be sent.

    Raises:
        RequestError: there are more values than `RAW_LIMIT`, or they are complex.
    """
    for key, array in raw.items():
        # No form of an answer has a word for them; only their statistics can be told.
        if array.dtype.kind == "c":
            raise _refused(f"the activations of {key!a} are complex", "layers with real values")
    sizes = {key: int(array.size) for key, array in raw.items()}
    if sum(sizes.values()) > RAW_LIMIT:
        listed = ", ".join(f"{key}: {size}" for key, size in sizes.items())
        raise RequestError(
            "activations_too_large",
            f"the raw activations hold {sum(sizes.values())} values ({listed})"[:500],
            expected=f"at most {RAW_LIMIT} values; ask for fewer layers or rows",
        )
    return raw


def to_lists(found: Sequence[Sequence[torch.Tensor]]) -> list[list[float]]:
    """Bring all vectors to the host in one transfer."""
    flat = [vector for layer in found for vector in layer]
    if not flat:
        return []
    values = torch.cat(flat).cpu().double().numpy()
    ends = np.cumsum([len(vector) for vector in flat])
    return [part.tolist() for part in np.split(values, ends[:-1])]
