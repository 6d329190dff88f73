"""One model: its layers against time and against the baseline, and its requests."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, TypeVar

from formats import baseline as baselines
from formats.baseline import Baseline
from observe.colours import Scale
from observe.deviation import deviation, summary_of, within
from observe.distributions import Distribution, distributions
from observe.drift import LayerDrift, drift
from observe.findings import Finding, find
from observe.heat import Grid, grid
from observe.outliers import Outlier, unusual
from observe.queries import (
    STATISTICS,
    Heatmap,
    LayerOverview,
    ModelSummary,
    Row,
    UnitReport,
    Window,
    flag_counts,
    flagged,
    gradient_heatmap,
    heatmaps,
    overview,
    recent,
    units,
)
from observe.views.asked import Asked
from observe.views.source import Source

__all__ = ["ModelView", "columns_for", "deviations_of", "fits", "view_model"]

T = TypeVar("T")
MOST_LAYERS: Final = 100
_MOST_PLOTS: Final = 24
_COLUMNS: Final = 60
_CELLS: Final = 3000
_ROWS: Final = 30
_EXTREMES: Final = ("min", "max")


@dataclass(frozen=True)
class ModelView:
    """What the page of a model shows.

    Attributes:
        asked: what it was asked for.
        versions: of the model.
        window: the records.
        records: how many there are in the window.
        baseline: what is compared with, or None.
        grid: the statistic that was asked for, of each layer against time.
        grids: all statistics, likewise.
        flow: norms of the gradients; None where the log has none.
        layers: over the whole window.
        distributions: of the rows; of at most 24 layers, the strangest.
        findings: what is wrong, in words, the worst first.
        drift: by layer, of those with enough rows; empty without a baseline.
        units: how often the units of ReLU-like layers were active.
        unusual: the latest requests that are unlike the calibration inputs.
        flags: requests with each of `FLAGS`.
        flagged: the latest requests with something strange, or with the flag that was asked for.
        recent: the latest requests.
    """

    asked: Asked
    versions: list[ModelSummary]
    window: Window
    records: int
    baseline: Baseline | None
    grid: Grid
    grids: dict[str, Grid]
    flow: Grid | None
    layers: list[LayerOverview]
    distributions: list[Distribution]
    findings: list[Finding]
    drift: dict[str, LayerDrift]
    units: list[UnitReport]
    unusual: list[tuple[Row, Outlier]]
    flags: dict[str, int]
    flagged: list[Row]
    recent: list[Row]

    @property
    def scores(self) -> dict[int, Outlier]:
        """How unusual the unusual requests are, by the record's number in the index."""
        return {row.id: score for row, score in self.unusual}


def view_model(source: Source, asked: Asked) -> ModelView:
    """Look at a model."""
    known = source.models()
    window = asked.window(known)
    baseline = source.baselines.find(asked.model, asked.version)
    index = source.index
    number = sum(fits(key, asked.layers) for key in index.order(asked.model, asked.version))
    columns = columns_for(number)

    def once(what: Hashable, make: Callable[[], T]) -> T:
        # Another statistic, or another choice of layers, needs the same again.
        return source.cached((window, what), make)

    maps = {
        name: _only(found, asked.layers)
        for name, found in once(
            ("heatmaps", columns), lambda: heatmaps(index, window, columns)
        ).items()
    }
    grids = {
        name: grid(
            found, maps["non_finite"], baseline, scale_of(asked, name, baseline), most=MOST_LAYERS
        )
        for name, found in maps.items()
    }
    chosen = grids[asked.statistic]
    shown = {row.key for row in chosen.rows}
    strangest = sorted(chosen.rows, key=lambda row: -row.weight)[:_MOST_PLOTS]
    norms = _only(gradient_heatmap(index, window, "norm", columns), asked.layers)
    flow = None
    if norms.layers:
        bad = _only(gradient_heatmap(index, window, "non_finite", columns), asked.layers)
        flow = grid(norms, bad, None, "flow", most=MOST_LAYERS)
    return ModelView(
        asked,
        [one for one in known if one.model == asked.model],
        window,
        sum(maps[asked.statistic].records),
        baseline,
        chosen,
        grids,
        flow,
        [
            layer
            for layer in once("overview", lambda: overview(index, window))
            if layer.key in shown
        ],
        distributions(index, window, asked.statistic, baseline, [row.key for row in strangest])
        if asked.statistic in baselines.STATISTICS
        else [],
        once("findings", lambda: find(index, window, baseline)),
        {one.key: one for one in once("drift", lambda: drift(index, window, baseline))}
        if baseline
        else {},
        [one for one in units(index, window) if fits(one.key, asked.layers)],
        once("unusual", lambda: unusual(index, window, baseline, _ROWS)),
        flag_counts(index, window),
        flagged(index, window, _ROWS, asked.flag),
        recent(index, window, _ROWS),
    )


def scale_of(asked: Asked, statistic: str, baseline: Baseline | None) -> Scale:
    """Return what colours can mean: without a baseline, values only."""
    if statistic == "non_finite":
        return "count"
    if baseline is None or statistic not in baselines.STATISTICS or asked.scale == "value":
        return "value"
    return "baseline"


def columns_for(layers: int) -> int:
    """Return how many columns the heat map of so many layers may have."""
    return max(20, min(_COLUMNS, _CELLS // max(1, min(layers, MOST_LAYERS))))


def fits(key: str, part: str) -> bool:
    """Tell whether a layer is one of those asked for: by a part of its name, or a pattern."""
    if "*" in part or "?" in part:
        return fnmatchcase(key, part)
    return part.casefold() in key.casefold()


def deviations_of(layer: LayerOverview, baseline: Baseline | None) -> dict[str, float | None]:
    """Return how far a layer's statistics over a window are from the baseline, in its spreads."""
    return {
        name: (within if name in _EXTREMES else deviation)(
            value, summary_of(baseline, layer.key, name)
        )
        for name, value in layer.statistics.items()
        if name in STATISTICS
    }


def _only(found: Heatmap, part: str) -> Heatmap:
    if not part:
        return found
    places = [place for place, key in enumerate(found.layers) if fits(key, part)]
    return Heatmap(
        found.statistic,
        [found.layers[place] for place in places],
        found.starts,
        found.width,
        [found.values[place] for place in places],
        found.records,
        [found.measured[place] for place in places],
        [found.flagged[place] for place in places],
    )
