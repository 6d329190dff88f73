"""One version of a model in a report: what is shown of it, gathered from the index."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from formats.baseline import Baseline
from observe.baselines import Baselines
from observe.distributions import Distribution, distributions
from observe.drift import LayerDrift, drift
from observe.findings import Finding, find
from observe.heat import Grid, grid
from observe.index import Index
from observe.outliers import LATEST, Outlier, count_unusual, unusual
from observe.queries import (
    STATISTICS,
    Row,
    Window,
    flagged,
    gradient_heatmap,
    heatmaps,
)
from observe.report_evidence import (
    Counted,
    LayerFlow,
    Producer,
    explained,
    gradient_flow,
    inherited,
    producers,
)
from observe.report_layer import DISTRIBUTIONS, LayerSummary, strangest, summarise

__all__ = ["Section", "gather", "log_norms"]

_FEW_LAYERS: Final = 10
_MOST_LAYERS: Final = 24
_MOST_PLOTS: Final = 12
_COLUMNS: Final = 40
_COLUMNS_OF_MANY: Final = 24
_REQUESTS: Final = 20


@dataclass(frozen=True)
class Section:
    """What a report says of one version of a model.

    Attributes:
        counted: how many records, from when to when.
        window: which records.
        baseline: what is compared with, or None.
        layers: all of them, in execution order.
        producers: layers that made NaN or an infinity, the first at the front.
        inherited: requests with such values that no layer began.
        grids: heat maps by statistic, of at most 24 layers, the strangest.
        distributions: by statistic, of at most 12 layers, the strangest.
        explained: of what gradients were taken, and how often.
        flow: gradients at each layer.
        flow_grid: their norms against time; None without.
        flagged: the latest requests with something strange.
        drift: how far each layer's distributions moved; None without a baseline.
        scored: how many of the latest requests are over the outlier score's threshold, and of how
            many at most; None where there are no scores.
        unusual: the latest of these.
        findings: what is wrong, in words, the worst first.
    """

    counted: Counted
    window: Window
    baseline: Baseline | None
    layers: tuple[LayerSummary, ...]
    producers: tuple[Producer, ...]
    inherited: int
    grids: dict[str, Grid]
    distributions: dict[str, list[Distribution]]
    explained: dict[str, int]
    flow: tuple[LayerFlow, ...]
    flow_grid: Grid | None
    flagged: tuple[Row, ...]
    drift: tuple[LayerDrift, ...] | None
    scored: tuple[int, int] | None
    unusual: tuple[tuple[Row, Outlier], ...]
    findings: tuple[Finding, ...]

    @property
    def not_finite(self) -> list[LayerSummary]:
        """Layers with NaN or infinities."""
        return [one for one in self.layers if one.overview.non_finite]

    @property
    def silent(self) -> list[LayerSummary]:
        """Layers that were all zeros in some request."""
        return [one for one in self.layers if one.overview.dead]

    @property
    def unfired(self) -> list[LayerSummary]:
        """Layers with units that never fired."""
        return [one for one in self.layers if one.units is not None and one.units.dead]

    @property
    def sleepier(self) -> list[LayerSummary]:
        """Layers of which more is zero than the baseline lets expect."""
        return [one for one in self.layers if one.sleepier]

    @property
    def drifted(self) -> list[LayerDrift]:
        """Layers whose drift alarm rang, the farthest beyond its threshold first."""
        rang = [one for one in self.drift or () if one.alarm]
        return sorted(rang, key=lambda one: one.worst.threshold - one.worst.distance)

    @property
    def vanishing(self) -> list[LayerFlow]:
        """Layers whose gradient was lost in some request."""
        return [one for one in self.flow if one.vanishing]

    @property
    def exploding(self) -> list[LayerFlow]:
        """Layers whose gradient grew too much in some request."""
        return [one for one in self.flow if one.exploding]


def gather(
    index: Index,
    baselines: Baselines,
    counted: Counted,
    since: int | None,
    until: int | None,
) -> Section:
    """Gather what a report says of one version of a model.

    Args:
        index: to ask.
        baselines: of the models.
        counted: which model and version.
        since: milliseconds since 1970, or None.
        until: the first that no longer counts, or None.
    """
    window = Window(counted.model, counted.version, since, until)
    baseline = baselines.find(counted.model, counted.version)
    layers = summarise(index, window, baseline)
    columns = _COLUMNS if len(layers) <= _FEW_LAYERS else _COLUMNS_OF_MANY
    maps = heatmaps(index, window, columns)
    grids = {
        name: grid(
            maps[name],
            maps["non_finite"],
            baseline,
            "value" if baseline is None or name == "non_finite" else "baseline",
            most=_MOST_LAYERS,
        )
        for name in STATISTICS
    }
    keys = [one.key for one in strangest(layers, _MOST_PLOTS)]
    flow = gradient_flow(index, window)
    number = count_unusual(index, window, baseline, LATEST)
    flow_grid = None
    if flow:
        norms = gradient_heatmap(index, window, "norm", columns)
        bad = gradient_heatmap(index, window, "non_finite", columns)
        flow_grid = grid(norms, bad, None, "flow", most=_MOST_LAYERS)
    return Section(
        counted,
        window,
        baseline,
        layers,
        tuple(producers(index, window)),
        inherited(index, window),
        grids,
        {name: distributions(index, window, name, baseline, keys) for name in DISTRIBUTIONS},
        explained(index, window),
        tuple(flow),
        flow_grid,
        tuple(flagged(index, window, _REQUESTS)),
        None if baseline is None else tuple(drift(index, window, baseline)),
        None if number is None else (number, min(LATEST, counted.records - counted.errors)),
        tuple(unusual(index, window, baseline, _REQUESTS)),
        tuple(find(index, window, baseline)),
    )


def log_norms(flow: Sequence[LayerFlow]) -> list[float | None]:
    """Return the decimal logarithm of each layer's median norm; None where there is none."""
    return [math.log10(one.norm) if one.norm else None for one in flow]
