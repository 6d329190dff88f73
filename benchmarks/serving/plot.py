"""Draws requests per second and p99 of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from benchmarks.serving.figures import Closed
from benchmarks.serving.measure import Found, WorkFound

matplotlib.use("Agg")

__all__ = ["draw"]


def draw(found: Sequence[WorkFound], path: Path) -> None:
    """Write a picture: a row for each work, requests/s and p99 by number of connections."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(found), 2, figsize=(11, 4.2 * len(found)), squeeze=False, layout="constrained"
    )
    for work, (left, right) in zip(found, axes, strict=True):
        for one in work.servers:
            if one.closed and one.kind != "reference":
                _line(left, one, lambda each: each.per_second)
                _line(right, one, lambda each: each.latency_ms["p99"])
        left.set(title=work.title, ylabel="requests per second")
        right.set(title=work.title, ylabel="p99, ms")
        for axis in (left, right):
            axis.set(xlabel="connections", xscale="log", yscale="log")
            axis.grid(visible=True, alpha=0.3)
        right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _line(axis: Axes, one: Found, value: Callable[[Closed], float]) -> None:
    loads = sorted(one.closed)
    each = [[value(closed) for closed in one.closed[load]] for load in loads]
    low, middle, high = (
        [float(np.percentile(values, percent)) for values in each] for percent in (25, 50, 75)
    )
    style = "-" if one.kind == "vitrine" else "--"
    (drawn,) = axis.plot(loads, middle, style, marker="o", label=one.name)
    axis.fill_between(loads, low, high, color=drawn.get_color(), alpha=0.15)
