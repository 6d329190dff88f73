"""What is seen of a model at one moment: its layers over the last seconds of the log."""

from dataclasses import dataclass
from typing import Final

from formats.baseline import Baseline
from observe.baselines import Baselines
from observe.index import Index
from observe.queries import (
    LayerOverview,
    ModelSummary,
    Row,
    Window,
    flagged,
    models,
    overview,
)
from observe.row_averages import RowAverage, row_averages, trends

__all__ = ["LayerNow", "Snapshot", "choose", "take"]

TREND: Final = 12
"""Stretches of time that a trend has, each as long as the window."""
_FLAGGED: Final = 10


@dataclass(frozen=True)
class LayerNow:
    """One layer over the window.

    Attributes:
        key: the layer's.
        overview: a request counting once.
        averages: a row counting once, by statistic; without entries where no row was measured.
        trend: average `mean` in the last stretches of time, the oldest first.
    """

    key: str
    overview: LayerOverview
    averages: dict[str, RowAverage]
    trend: list[float | None]

    def average(self, statistic: str) -> RowAverage:
        """Return a statistic's average over rows, or else over requests."""
        found = self.averages.get(statistic)
        if found is not None and found.rows:
            return found
        return RowAverage(0, self.overview.statistics[statistic], None)

    @property
    def weight(self) -> float:
        """How strange it is: what is not finite before what is all zeros before what deviates."""
        if self.overview.non_finite:
            return 3e6
        if self.overview.dead:
            return 2e6 + self.overview.dead / max(1, self.overview.records)
        return max((abs(one.deviation or 0.0) for one in self.averages.values()), default=0.0)


@dataclass(frozen=True)
class Snapshot:
    """A model over the last seconds of the log.

    Attributes:
        chosen: the model and version that is shown.
        others: what else the log has.
        window: which records.
        seconds: how long the window is.
        now: milliseconds since 1970.
        live: whether the window ends now; else it ends with the log's last record.
        records: in the window.
        errors: of these, those that ended in an error.
        rate: records per second.
        baseline: what is compared with, or None.
        layers: in execution order.
        flagged: requests that something was strange in, the latest first, of the whole log.
    """

    chosen: ModelSummary
    others: tuple[ModelSummary, ...]
    window: Window
    seconds: float
    now: int
    live: bool
    records: int
    errors: int
    rate: float
    baseline: Baseline | None
    layers: tuple[LayerNow, ...]
    flagged: tuple[Row, ...]


def choose(
    found: list[ModelSummary], model: str | None, version: str | None
) -> ModelSummary | None:
    """Return the model and version with the latest record, of those that are meant.

    Args:
        found: what the log has.
        model: only this model; None for any.
        version: only this version; None for any.
    """
    meant = [one for one in found if model in (None, one.model) and version in (None, one.version)]
    return max(meant, key=lambda one: one.last, default=None)


def take(
    index: Index,
    baselines: Baselines,
    *,
    now: int,
    seconds: float,
    model: str | None = None,
    version: str | None = None,
) -> Snapshot | None:
    """Return what is seen now; None where the log has nothing of what is meant.

    The window ends now. Where it would hold no record, it ends with the last one instead, so that
    a log that is no longer written shows how it ended.

    Args:
        index: to ask.
        baselines: of the models.
        now: milliseconds since 1970.
        seconds: how long the window is.
        model: only this; None for the one with the latest record.
        version: likewise.
    """
    found = models(index)
    chosen = choose(found, model, version)
    if chosen is None:
        return None
    width = max(1, round(seconds * 1000))
    live = chosen.last > now - width
    # Another machine's clock may be ahead of this one's.
    until = max(now, chosen.last) + 1 if live else chosen.last + 1
    window = Window(chosen.model, chosen.version, until - width, until)
    baseline = baselines.find(chosen.model, chosen.version)
    averages = row_averages(index, window, baseline)
    trend = trends(index, window, until, width, TREND)
    layers = tuple(
        LayerNow(one.key, one, averages.get(one.key, {}), trend.get(one.key, [None] * TREND))
        for one in overview(index, window)
    )
    records, errors = _count(index, window)
    # A log that has just begun has no full window yet.
    covered = min(width, max(1000, until - chosen.first)) / 1000
    return Snapshot(
        chosen,
        tuple(one for one in found if one != chosen),
        window,
        seconds,
        now,
        live,
        records,
        errors,
        records / covered,
        baseline,
        layers,
        tuple(flagged(index, Window(chosen.model, chosen.version), _FLAGGED)),
    )


def _count(index: Index, window: Window) -> tuple[int, int]:
    owner, first = window.owner("r")
    condition, second = window.condition("r")
    with index.cursor() as cursor:
        row = cursor.execute(
            f"SELECT count(*), count(r.error) FROM record r WHERE {owner} AND {condition}",
            [*first, *second],
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])
