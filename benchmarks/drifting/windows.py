"""Windows of traffic, drawn from records: how many of them alarm."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from formats.baseline import Baseline
from observe.drift import LayerDrift, drift
from observe.index import Index
from observe.lines import Columns
from observe.queries import Window

__all__ = ["Draw", "alarms", "drawn", "merged", "windows"]

Draw = NDArray[np.int64]
"""Which records are in each window, int64 [windows, records]."""


def merged(first: Columns, second: Columns) -> Columns:
    """Return the records of both, of one model and its same layers, the second's last."""
    assert first.layers == second.layers
    shifted = second.value_of.copy()
    shifted[:, 0] += len(first.record["rows"])
    return Columns(
        record={
            name: np.concatenate([column, second.record[name]])
            if isinstance(column, np.ndarray)
            else [*column, *second.record[name]]
            for name, column in first.record.items()
        },
        layers=first.layers,
        value=np.concatenate([first.value, second.value]),
        value_of=np.concatenate([first.value_of, shifted]),
        order=first.order,
    )


def drawn(records: Columns, draw: NDArray[np.int64]) -> Columns:
    """Return chosen records of one row each, int64 [n], one after the other in time."""
    many = len(records.record["rows"])
    layers = len(records.value) // many
    of = records.value_of.reshape(many, layers, -1)[draw].copy()
    of[:, :, 0] = np.arange(len(draw))[:, None]
    return Columns(
        record={
            name: column[draw]
            if isinstance(column, np.ndarray)
            else [column[place] for place in draw.tolist()]
            for name, column in records.record.items()
        }
        | {"time": np.arange(len(draw), dtype=np.int64)},
        layers=records.layers,
        value=records.value.reshape(many, layers, -1)[draw].reshape(len(draw) * layers, -1),
        value_of=of.reshape(len(draw) * layers, -1),
        order=records.order,
    )


def windows(
    records: Columns, draw: Draw, baselines: Sequence[Baseline]
) -> Iterator[list[LayerDrift]]:
    """Hold windows against baselines.

    Args:
        records: of one row each.
        draw: which of them are in each window.
        baselines: one for all windows, or one for each.
    """
    model, version, _, _ = records.layers[0]
    many, size = draw.shape
    index = Index()
    try:
        index.add(drawn(records, draw.reshape(-1)))
        for number in range(many):
            window = Window(model, version, number * size, (number + 1) * size)
            yield drift(index, window, baselines[number % len(baselines)], latest=size)
    finally:
        index.close()


def alarms(records: Columns, draw: Draw, baselines: Sequence[Baseline]) -> float:
    """Return the share of windows in which some layer alarms."""
    found = [any(layer.alarm for layer in one) for one in windows(records, draw, baselines)]
    return sum(found) / len(found)
