"""The baseline: statistics of every observed layer over the calibration inputs."""

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Final

import datasketches
import numpy as np
import torch

from engine import SUMMARY
from export.definition import Definition
from export.inputs import Example
from formats.baseline import STATISTICS, Baseline, Summary
from formats.layers import Layer
from formats.observation import totals

__all__ = ["MOST_ROWS", "measure"]

MOST_ROWS: Final = 2000
"""Rows that are taken, evenly from all that there are."""

# Of the t-digest: 2.8 kB; on 1,347 values, ranks within 0.5 % and quantiles within 2 %.
_COMPRESSION: Final = 200


def measure(
    observed: Any, layers: Sequence[Layer], definition: Definition, *, row_axis: bool
) -> Baseline:
    """Run calibration inputs through the observed graph, one row at a time.

    Args:
        observed: the frozen observed graph.
        layers: those hooked into it, in the order of `layers.json`.
        definition: has the inputs: `calibration`, else the examples.
        row_axis: whether axis 0 of an input counts rows.

    Returns:
        Summaries of each statistic. Values that are not finite are left out, and an input that
        the model refuses.
    """
    inputs = list(_rows(definition.calibration or definition.examples, row_axis))
    step = -(-len(inputs) // MOST_ROWS)
    seen: dict[str, dict[str, list[float]]] = {}
    rows = 0
    for row in inputs[::step]:
        try:
            with torch.no_grad():
                _, codes, joined = getattr(observed, SUMMARY)(*(part.clone() for part in row))
        except (RuntimeError, torch.jit.Error):
            continue
        rows += 1
        for one, statistics in totals(layers, codes, joined.tolist()):
            if statistics is None:
                continue
            for name in STATISTICS:
                value = getattr(statistics, name)
                if value is not None:
                    seen.setdefault(one.key, {}).setdefault(name, []).append(value)
    return Baseline(
        "calibration" if definition.calibration else "examples",
        rows,
        {
            key: {name: _summary(values) for name, values in statistics.items()}
            for key, statistics in seen.items()
        },
    )


def _rows(cases: Sequence[Example], row_axis: bool) -> Iterator[Example]:
    for case in cases:
        if row_axis:
            yield from (tuple(part[n : n + 1] for part in case) for n in range(len(case[0])))
        else:
            yield case


def _summary(values: Sequence[float]) -> Summary:
    sketch = datasketches.tdigest_double(_COMPRESSION)
    for value in values:
        sketch.update(value)
    found = np.asarray(values)
    text = base64.b64encode(sketch.serialize()).decode("ascii")
    return Summary(len(values), float(found.mean()), float(found.std()), text)
