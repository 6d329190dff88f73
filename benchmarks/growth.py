"""How Vitrine's cost grows: `scripts/benchmark growth`.

Requests per second and latency against the number of connections, the rows and the bytes of a
request, the share of requests that ask for activations, and the number of workers. Each round
measures every point once, in an order of its own; every answer is checked, as by
`scripts/benchmark serve`.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.activations import Spread
from benchmarks.serving import closed, payload
from benchmarks.serving.console import progress
from benchmarks.serving.figures import Closed, Measured
from benchmarks.serving.measure import locked
from benchmarks.serving.points import AXES, Axis, Point
from benchmarks.serving.prepared import Prepared, prepare
from benchmarks.serving.report import machine, shown
from benchmarks.serving.running import NotRun, Running, start
from benchmarks.serving.vitrine import launch

__all__ = ["main", "render"]

_SEED: Final = 0
_START_SECONDS: Final = 300.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Ready:
    measured: Measured
    point: Point
    running: Running
    folder: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 when a request did not get the right answer, or a server did not start.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds must be at least 1")
    # Ended, it ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about = machine()
    found: dict[str, list[Measured]] = {}
    for name in options.axes:
        with tempfile.TemporaryDirectory(prefix="vitrine-growth-") as folder:
            try:
                found[name] = _measure(AXES[name], Path(folder), options, progress)
            except NotRun as error:
                print(f"error: {name}: {error}", file=sys.stderr)
                return 1
    print(render(found, about, options.rounds, options.seconds))
    if options.json is not None:
        text = json.dumps(_document(found, about, options), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.plot is not None:
        from benchmarks.serving.plot import draw_growth

        draw_growth(found, options.plot)
    failures = sum(one.failures for own in found.values() for point in own for one in point.rounds)
    if failures:
        print(f"error: {failures} requests did not get the right answer", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark growth", description="Measure how Vitrine's cost grows."
    )
    parser.add_argument(
        "--axes",
        nargs="+",
        choices=list(AXES),
        default=list(AXES),
        metavar="NAME",
        help=f"only these of {', '.join(AXES)}",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement (3)")
    parser.add_argument("--lock", metavar="FILE", help="lock this file (flock) for each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw requests/s and p99")
    return parser


def _measure(
    axis: Axis, scratch: Path, options: argparse.Namespace, progress: Progress
) -> list[Measured]:
    with ExitStack() as stack:
        ready = stack.enter_context(_served(axis, scratch, progress))
        order = list(ready)
        shuffle = random.Random(_SEED).shuffle  # noqa: S311 (an order, not a secret)
        for number in range(options.rounds):
            shuffle(order)
            with locked(options.lock):
                for one in order:
                    at = f"{one.point.series}, {one.point.at}"
                    progress(f"{axis.name}: round {number + 1}/{options.rounds}, {at}")
                    one.measured.rounds.append(_load(one, scratch, options.seconds))
        return [one.measured for one in ready]


def _load(one: _Ready, scratch: Path, seconds: float) -> Closed:
    result = scratch / "result.json"
    found = closed.load(one.running, one.folder, result, one.point.connections, seconds)
    one.running.settle()
    return found


@contextmanager
def _served(axis: Axis, scratch: Path, progress: Progress) -> Iterator[list[_Ready]]:
    """Start a server for each variant and model of an axis, warmed up at every point."""
    prepared: dict[str, Prepared] = {}
    running: dict[tuple[str, str], Running] = {}
    ready = []
    with ExitStack() as stack:
        for number, point in enumerate(axis.points):
            work = point.work.name
            if work not in prepared:
                progress(f"{axis.name}: exporting the model of {work}")
                folder = scratch / work
                folder.mkdir()
                prepared[work] = prepare(point.work, folder)
            own = prepared[work]
            case = point.make(own.model, own.cases)
            requests = scratch / f"payload-{number}"
            payload.write(requests, case.form, case.expected, min(point.work.each, 16))
            read = payload.read(requests)
            key = (work, point.variant.name)
            if key not in running:
                progress(f"{axis.name}: starting {point.variant.name} with {work}")
                log = scratch / f"{work}-{point.variant.name}.log"
                running[key] = start(launch(point.variant, own), read, log, _START_SECONDS)
                stack.callback(running[key].stop)
            one = _Ready(Measured(point.series, point.at), point, running[key], requests)
            closed.load(one.running, requests, scratch / "result.json", point.connections, 1)
            ready.append(one)
        yield ready


def render(
    found: Mapping[str, Sequence[Measured]],
    about: Mapping[str, Any],
    rounds: int,
    seconds: float,
) -> str:
    """Return everything as Markdown tables."""
    lines = [
        f"{about['processor']}, {about['cores']} cores, load {about['load_average']} at the start; "
        f"torch {about['torch']}; {rounds} rounds of {seconds:g} s, medians [quartiles]. Server "
        "and load generator share the cores."
    ]
    for name, own in found.items():
        lines += [
            "",
            f"| {AXES[name].title} | series | requests/s | p50, ms | p99, ms | cores: server | wrk "
            "| others | failures |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_row(one) for one in own),
        ]
    return "\n".join(lines)


def _row(one: Measured) -> str:
    cells = [
        shown(_spread(one, lambda each: each.per_second)),
        shown(_spread(one, lambda each: each.latency_ms["p50"]), 2),
        shown(_spread(one, lambda each: each.latency_ms["p99"]), 2),
        shown(_spread(one, lambda each: each.server_cores), 2),
        shown(_spread(one, lambda each: each.client_cores), 2),
        shown(_spread(one, lambda each: each.other_cores), 2),
        str(sum(each.failures for each in one.rounds)),
    ]
    return f"| {one.at} | {one.series} | {' | '.join(cells)} |"


def _spread(one: Measured, value: Callable[[Closed], float]) -> Spread:
    return Spread.of([value(each) for each in one.rounds])


def _document(
    found: Mapping[str, Sequence[Measured]],
    about: Mapping[str, Any],
    options: argparse.Namespace,
) -> dict[str, Any]:
    return {
        "machine": dict(about),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "axes": {name: [asdict(one) for one in own] for name, own in found.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
