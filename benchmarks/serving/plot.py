"""Draws requests per second and p99 of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from benchmarks.serving.figures import Closed, Measured
from benchmarks.serving.measure import Found, WorkFound
from benchmarks.serving.points import AXES

matplotlib.use("Agg")

__all__ = ["draw", "draw_growth"]

_COLOURS: Final = [
    *matplotlib.color_sequences["tab10"],
    *("black", "gold", "navy", "lime"),
]


def draw(found: Sequence[WorkFound], path: Path) -> None:
    """Write a picture: a row for each work, requests/s and p99 by number of connections."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(found), 2, figsize=(11, 4.2 * len(found)), squeeze=False, layout="constrained"
    )
    for work, (left, right) in zip(found, axes, strict=True):
        loads = sorted({load for one in work.servers for load in one.closed})
        for axis in (left, right):
            # More colours than matplotlib's ten: each server has its own.
            axis.set_prop_cycle(color=_COLOURS)
        for one in work.servers:
            if one.closed and one.kind != "reference":
                _line(left, one, lambda each: each.per_second)
                _line(right, one, lambda each: each.latency_ms["p99"])
        left.set(title=work.title, ylabel="requests per second")
        right.set(title=work.title, ylabel="p99, ms")
        for axis in (left, right):
            axis.set(xlabel="connections", xscale="log", yscale="log")
            axis.set_xticks(loads, [str(load) for load in loads], minor=False)
            axis.set_xticks([], minor=True)
            axis.grid(visible=True, alpha=0.3)
        right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_growth(found: Mapping[str, Sequence[Measured]], path: Path) -> None:
    """Write a picture: a row for each axis, requests/s and p99 at each point."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(found), 2, figsize=(11, 3.6 * len(found)), squeeze=False, layout="constrained"
    )
    values: tuple[Callable[[Closed], float], ...] = (
        lambda each: each.per_second,
        lambda each: each.latency_ms["p99"],
    )
    for (name, points), pair in zip(found.items(), axes, strict=True):
        for axis, value, label in zip(
            pair, values, ("requests per second", "p99, ms"), strict=True
        ):
            for series in dict.fromkeys(point.series for point in points):
                own = [point for point in points if point.series == series]
                middle = [float(np.median([value(one) for one in point.rounds])) for point in own]
                axis.plot([point.at for point in own], middle, marker="o", label=series)
            axis.set(xlabel=AXES[name].title, ylabel=label, ylim=(0, None))
            axis.grid(visible=True, alpha=0.3)
            axis.legend(fontsize="small")
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
