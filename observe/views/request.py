"""One request, or two side by side: their layers, and where they left the baseline."""

from dataclasses import dataclass
from typing import Final

from formats.baseline import STATISTICS, Baseline
from observe.deviation import deviation, summary_of, within
from observe.outliers import Outlier, outlier
from observe.queries import LayerValue, Request, Row, Window, recent, request
from observe.views.asked import Refused
from observe.views.source import Source

__all__ = ["LEFT", "Entry", "Layer", "Pair", "RequestView", "compare", "view_request"]

LEFT: Final = 4.0
"""Spreads from the baseline from which on a layer has left it."""
_EXTREMES: Final = ("min", "max")


@dataclass(frozen=True)
class Entry:
    """Statistics of a layer in a request or one of its rows, with their deviations in spreads."""

    value: LayerValue
    deviations: dict[str, float | None]

    @property
    def furthest(self) -> float | None:
        """The deviation that is greatest in either direction."""
        known = [one for one in self.deviations.values() if one is not None]
        return max(known, key=abs, default=None)


@dataclass(frozen=True)
class Layer:
    """One layer of a request.

    Attributes:
        key: the layer's.
        total: over the whole request.
        rows: each row by itself, where the request has several.
        marks: what it is the first of, and what is wrong: words.
    """

    key: str
    total: Entry
    rows: tuple[Entry, ...]
    marks: tuple[str, ...]

    @property
    def left(self) -> bool:
        """Whether it left the baseline, in one row at least."""
        return any(abs(one.furthest or 0.0) >= LEFT for one in (self.total, *self.rows))


@dataclass(frozen=True)
class RequestView:
    """What the page of a request shows.

    Attributes:
        request: as the log has it.
        baseline: what it is compared with, or None.
        layers: in execution order.
        left: the first layer that left the baseline, or None.
        bad: the first layer with something that is not finite, or None.
        outlier: how unlike the calibration inputs it is; None where that is not known.
        before: the request before it, of the same version, or None.
    """

    request: Request
    baseline: Baseline | None
    layers: list[Layer]
    left: str | None
    bad: str | None
    outlier: Outlier | None
    before: Row | None


@dataclass(frozen=True)
class Pair:
    """One layer in two requests; a side is None where it did not run."""

    key: str
    first: Entry | None
    second: Entry | None

    def difference(self, statistic: str) -> float | None:
        """Return second minus first; None where one is missing."""
        if self.first is None or self.second is None:
            return None
        before = self.first.value.statistics[statistic]
        after = self.second.value.statistics[statistic]
        return None if before is None or after is None else after - before


def view_request(source: Source, model: str, request_id: str) -> RequestView:
    """Look at a request.

    Raises:
        Refused: the log has no such request of this model.
    """
    found = request(source.index, request_id, model)
    if found is None:
        raise Refused(404, _missing(source, request_id, model))
    row = found.row
    baseline = source.baselines.find(row.model, row.version)
    layers = _layers(found, baseline)
    left = next((layer.key for layer in layers if layer.left), None)
    bad = row.non_finite or next(
        (layer.key for layer in layers if layer.total.value.statistics["non_finite"]), None
    )
    marked = [
        Layer(layer.key, layer.total, layer.rows, _marks(layer, left, bad)) for layer in layers
    ]
    earlier = recent(source.index, Window(row.model, row.version, None, row.time), 1)
    return RequestView(
        found,
        baseline,
        marked,
        left,
        bad,
        outlier(found, baseline),
        earlier[0] if earlier else None,
    )


def compare(
    source: Source, model: str, first: str, second: str
) -> tuple[RequestView, RequestView, list[Pair]]:
    """Look at two requests of a model.

    Raises:
        Refused: the log lacks one of them.
    """
    a, b = (view_request(source, model, one) for one in (first, second))
    in_a = {layer.key: layer.total for layer in a.layers}
    in_b = {layer.key: layer.total for layer in b.layers}
    order = source.index.order(model, None)
    pairs = [Pair(key, in_a.get(key), in_b.get(key)) for key in order if key in in_a or key in in_b]
    return a, b, pairs


def _layers(found: Request, baseline: Baseline | None) -> list[Layer]:
    totals: dict[str, LayerValue] = {}
    rows: dict[str, list[Entry]] = {}
    for value in found.layers:
        if value.total:
            totals[value.key] = value
        else:
            rows.setdefault(value.key, []).append(_entry(value, baseline, single=True))
    return [
        Layer(
            key,
            _entry(value, baseline, single=value.row >= 0),
            tuple(rows.get(key, ())),
            (),
        )
        for key, value in totals.items()
    ]


def _entry(value: LayerValue, baseline: Baseline | None, *, single: bool) -> Entry:
    # The least of several rows is no fair match for the baseline's single ones.
    return Entry(
        value,
        {
            name: (within if name in _EXTREMES and not single else deviation)(
                value.statistics[name], summary_of(baseline, value.key, name)
            )
            for name in STATISTICS
        },
    )


def _marks(layer: Layer, left: str | None, bad: str | None) -> tuple[str, ...]:
    marks = []
    if layer.key == bad:
        marks.append("first NaN or infinity")
    elif layer.total.value.statistics["non_finite"]:
        marks.append("NaN or infinite")
    if layer.total.value.flag == "dead":
        marks.append("all zeros")
    if layer.key == left:
        marks.append("first to leave the baseline")
    elif layer.left:
        marks.append("off the baseline")
    return tuple(marks)


def _missing(source: Source, request_id: str, model: str) -> str:
    text = (
        f"the log has no request {request_id!r} of {model}; expected a request id or "
        "correlation id that is in the log"
    )
    return text if source.state().complete else f"{text}; it has not been read to its end yet"
