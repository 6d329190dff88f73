"""Outliers: requests that are unlike what the model was built for, one by one.

A request's score is `formats.score.score` of its rows' statistics, the largest of its rows; the
threshold is what one in a hundred of usual requests exceeds, by the scores of the calibration rows
that the export kept.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from formats.baseline import STATISTICS, Baseline, Summary
from formats.score import CAP, Scale, away, scales, score
from observe.index import Index
from observe.latest import Latest, latest
from observe.queries import Request, Row, Window, records
from observe.sketches import values

__all__ = [
    "FALSE_ALARMS",
    "LATEST",
    "Outlier",
    "count_unusual",
    "deviations",
    "outlier",
    "rows",
    "threshold",
    "unusual",
]

FALSE_ALARMS: Final = 0.01
"""The share of usual requests that count as unusual."""
LATEST: Final = 10_000
"""Of so many requests, the latest, `unusual` looks at most."""
_ENTRIES: Final = 400_000
"""And no further once there are so many layers in all their rows."""
_SPREADS: Final = 10.0
_FEW: Final = 99

Statistics = Mapping[str, float | None]


@dataclass(frozen=True)
class Outlier:
    """How unusual a request is.

    Attributes:
        score: that of its most unusual row; about 1 is usual, 5 is the most there is.
        threshold: what an unusual one exceeds.
        share: which part of the calibration rows scores as high, 0 to 1.
        row: which of its rows that is.
    """

    score: float
    threshold: float
    share: float
    row: int = 0

    @property
    def unusual(self) -> bool:
        """Whether it is unlike the calibration rows; always, where a layer is not finite."""
        return self.score > self.threshold or self.score >= CAP


def outlier(request: Request, baseline: Baseline | None) -> Outlier | None:
    """Return how unusual a request is.

    Returns:
        None where it cannot be told: without a baseline, with one of before there were scores,
        and where the request has no layer that the baseline knows.
    """
    if baseline is None or baseline.score is None:
        return None
    known = scales(baseline)
    scores = {row: score(layers, known) for row, layers in rows(request).items()}
    found = {row: value for row, value in scores.items() if value is not None}
    if not found:
        return None
    worst = max(found, key=lambda row: found[row])
    return _outlier(found[worst], baseline.score, worst, threshold(baseline.score, len(found)))


def rows(request: Request) -> dict[int, dict[str, dict[str, float | None]]]:
    """Return a request's statistics by its rows: by the layer's key, by statistic.

    A layer without a value for each row is left out, since the baseline is made of single rows.
    """
    found: dict[int, dict[str, dict[str, float | None]]] = {}
    for layer in request.layers:
        if layer.row >= 0:
            found.setdefault(layer.row, {})[layer.key] = layer.statistics
    return found


def deviations(layers: Mapping[str, Statistics], baseline: Baseline) -> dict[str, dict[str, float]]:
    """Return how far each statistic is from the baseline's mean, in the baseline's spreads.

    Args:
        layers: statistics of a row, as `rows` returns them; or of any layers, by their keys.
        baseline: of the model.

    Returns:
        By the layer's key, by statistic: z, signed; infinite for what is not finite. A layer
        that the baseline does not know is absent.
    """
    known = scales(baseline)
    return {
        key: {name: _deviation(statistics.get(name), scale) for name, scale in known[key].items()}
        for key, statistics in layers.items()
        if key in known
    }


def _deviation(value: float | None, scale: Scale) -> float:
    return float("inf") if value is None else away(value, scale)


def threshold(summary: Summary, rows: int = 1) -> float:
    """Return the score that `FALSE_ALARMS` of requests like the rows summarised exceed.

    Of a request of several rows the most unusual counts, so that each row has its part of the
    `FALSE_ALARMS`, a. Of m rows summarised, the k-th greatest score, where k = floor(a (m + 1)):
    another row of their distribution exceeds it with a probability of k / (m + 1). Where that
    is none of them, the scores beyond the 90 % quantile are taken to fall off exponentially; and
    where there are fewer than 99, it is ten spreads beyond the mean (at most 1 % of any
    distribution is there: Cantelli's inequality). It is never less than the greatest then.

    Args:
        summary: of the calibration rows' scores.
        rows: of the request.
    """
    own = values(summary)
    share = FALSE_ALARMS / max(1, rows)
    if place := int(share * (len(own) + 1)):
        return float(own[-place])
    if len(own) < _FEW:
        return max(summary.mean + _SPREADS * summary.spread, float(own[-1]))
    tail = own[-(len(own) // 10) :]
    excess = float(np.mean(tail - tail[0]))
    return max(float(tail[0]) + excess * math.log(0.1 / share), float(own[-1]))


def _outlier(found: float, summary: Summary, row: int, limit: float) -> Outlier:
    own = values(summary)
    share = 1 - float(np.searchsorted(own, found, side="left")) / len(own)
    return Outlier(found, limit, share, row)


def unusual(
    index: Index, window: Window, baseline: Baseline | None, limit: int = 50
) -> list[tuple[Row, Outlier]]:
    """Return requests over the threshold, the latest first.

    Looked at are the latest `LATEST` of the window that were answered; fewer, where layers times
    rows would be more than 400,000.

    Args:
        index: to ask.
        window: which records.
        baseline: of the model.
        limit: at most so many.
    """
    if baseline is None or baseline.score is None:
        return []
    found = _unusual(index, window, baseline, baseline.score, LATEST)[:limit]
    by_id = {row.id: row for row in records(index, [record for record, _ in found])}
    return [(by_id[record], own) for record, own in found if record in by_id]


def count_unusual(
    index: Index, window: Window, baseline: Baseline | None, requests: int
) -> int | None:
    """Return how many of the latest requests are over the threshold; None where unknown."""
    if baseline is None or baseline.score is None:
        return None
    return len(_unusual(index, window, baseline, baseline.score, requests))


def _unusual(
    index: Index, window: Window, baseline: Baseline, summary: Summary, requests: int
) -> list[tuple[int, Outlier]]:
    layers = max(1, len(index.order(window.model, window.version)))
    seen = latest(index, window, requests, max(1, _ENTRIES // layers))
    record, row, scores = _scores(seen, scales(baseline))
    _, request, sizes = np.unique(record, return_inverse=True, return_counts=True)
    limits = {size: threshold(summary, size) for size in np.unique(sizes).tolist()}
    limit = np.array([limits[size] for size in sizes.tolist()])[request] if len(record) else scores
    over = (scores > limit) | (scores >= CAP)
    worst: dict[int, Outlier] = {}
    for key, number, value, own in zip(
        *(column[over].tolist() for column in (record, row, scores, limit)), strict=True
    ):
        if key not in worst or value > worst[key].score:
            worst[key] = _outlier(value, summary, number, own)
    return list(worst.items())


def _scores(
    seen: Latest, known: Mapping[str, Mapping[str, Scale]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return `formats.score.score` of many rows at once: record, row and score of each."""
    shape = (len(seen.keys), len(STATISTICS))
    mean, spread, used = np.zeros(shape), np.ones(shape), np.zeros(shape, dtype=bool)
    for place, key in enumerate(seen.keys):
        for number, name in enumerate(STATISTICS):
            if (scale := known.get(key, {}).get(name)) is not None:
                mean[place, number], spread[place, number] = scale
                used[place, number] = True
    counted = used[seen.layer]
    missing = np.isnan(seen.values) & counted
    # An empty output has nothing that could be measured.
    counted &= ~(missing.sum(axis=1) == counted.sum(axis=1))[:, None]
    difference = seen.values - mean[seen.layer]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.minimum(np.abs(difference / spread[seen.layer]), CAP)
    # 0 / 0: what the baseline has, with a scale of nothing.
    z = np.where(difference == 0, 0.0, z)
    squares = np.where(counted & ~missing, z**2, 0.0)
    # Entries of one row follow one another.
    new = np.ones(len(seen.record), dtype=bool)
    new[1:] = (seen.record[1:] != seen.record[:-1]) | (seen.row[1:] != seen.row[:-1])
    start = np.flatnonzero(new)
    if not len(start):
        return seen.record, seen.row, np.zeros(0)
    total = np.add.reduceat(squares.sum(axis=1), start)
    count = np.add.reduceat(counted.sum(axis=1), start)
    strange = np.logical_or.reduceat((missing & counted).any(axis=1), start)
    scores = np.sqrt(total / np.maximum(count, 1))
    scores = np.where(strange, CAP, scores)
    kept = count > 0
    return seen.record[start][kept], seen.row[start][kept], scores[kept]
