"""`python -m observe drift LOG`: a table of how far each layer has moved; status 1 on an alarm."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from observe.baselines import Baselines
from observe.drift import LayerDrift, drift
from observe.index import Index
from observe.latest import current
from observe.options import add_log_arguments, open_log
from observe.outliers import count_unusual
from observe.queries import Window
from observe.screen import footer

__all__ = ["add_arguments", "run"]


@dataclass(frozen=True)
class Compared:
    """A version of a model beside its baseline: its layers, and how many requests are unusual."""

    model: str
    version: str
    layers: list[LayerDrift]
    outliers: int | None

    @property
    def alarm(self) -> bool:
        """Whether one of its layers has moved too far."""
        return any(layer.alarm for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "model": self.model,
            "version": self.version,
            "alarm": self.alarm,
            "outlier_requests": self.outliers,
            "layers": [
                {
                    "layer": layer.key,
                    "alarm": layer.alarm,
                    "statistics": {
                        one.statistic: {
                            "distance": one.distance,
                            "threshold": one.threshold,
                            "rows": one.rows,
                            "alarm": one.alarm,
                        }
                        for one in layer.distances
                    },
                }
                for layer in self.layers
            ],
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_log_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help="only this model (default: all)")
    parser.add_argument("--latest", type=_count, default=500, metavar="N", help="requests (500)")
    parser.add_argument("--json", action="store_true", help="all distances, as JSON")


def run(options: argparse.Namespace) -> int:
    """Compare, print, and return 1 where something has drifted, 2 where nothing could be told."""
    reader, index, baselines = open_log(options)
    state = reader.read_all()
    if state.skipped or state.truncated or state.problem:
        print(footer(state).plain, file=sys.stderr)
    found, missing = compare(index, baselines, options.latest, options.model)
    for owner in missing:
        print(f"{owner.model} {owner.version}: no baseline was found", file=sys.stderr)
    if options.json:
        alarm = any(one.alarm for one in found)
        models = [one.to_json() for one in found]
        print(json.dumps({"alarm": alarm, "models": models}, indent=2, allow_nan=False))
    else:
        _print(found)
    if not any(one.layers for one in found):
        print("error: there are too few records with a baseline to compare", file=sys.stderr)
        return 2
    return int(any(one.alarm for one in found))


def compare(
    index: Index, baselines: Baselines, latest: int, model: str | None = None
) -> tuple[list[Compared], list[Window]]:
    """Hold what the log has lately against the baselines.

    Args:
        index: of the log.
        baselines: of its models.
        latest: at most so many requests.
        model: only this one; None for all.

    Returns:
        What was compared, and the windows that have no baseline.
    """
    found, missing = [], []
    for window in current(index):
        if model not in (None, window.model):
            continue
        assert window.version is not None
        baseline = baselines.find(window.model, window.version)
        if baseline is None:
            missing.append(window)
            continue
        layers = drift(index, window, baseline, latest)
        outliers = count_unusual(index, window, baseline, latest)
        found.append(Compared(window.model, window.version, layers, outliers))
    return found, missing


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return number


def _print(found: Sequence[Compared]) -> None:
    console = Console(highlight=False)
    for one in found:
        unusual = "" if one.outliers is None else f"; {one.outliers} unusual requests"
        # What is in a log is text, and never markup.
        table = Table(title=Text(f"{one.model} {one.version}{unusual}"), title_justify="left")
        for name in ("layer", "statistic", "distance", "threshold", "rows", ""):
            table.add_column(name, justify="left" if name in ("layer", "statistic") else "right")
        for layer in one.layers:
            worst = layer.worst
            table.add_row(
                Text(layer.key),
                worst.statistic,
                f"{worst.distance:.3f}",
                f"{worst.threshold:.3f}",
                str(worst.rows),
                "DRIFT" if layer.alarm else "",
                style="bold red" if layer.alarm else None,
            )
        console.print(table)
