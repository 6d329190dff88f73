"""Vitrine beside what one would pick instead: `scripts/benchmark serve`.

Serves the same model file with Vitrine, TorchServe, LitServe, MLServer, BentoML, Triton and a
FastAPI program written by hand, and asks them in alternating rounds: each round measures every
server once at each load, in an order of its own. Figures are medians over rounds with quartiles;
ratios are taken within a round. Every request has its own input, and every answer is checked.
benchmarks/README.md says what is measured and how.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.serving.console import progress
from benchmarks.serving.measure import Plan, WorkFound, measure
from benchmarks.serving.prepared import prepare
from benchmarks.serving.report import document, machine, render
from benchmarks.serving.servers import LIMIT, Server, all_servers
from benchmarks.serving.vitrine import VARIANTS, read_variants
from benchmarks.serving.work import WORKS

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 when a request did not get the right answer, or nothing could be measured.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        servers = _chosen(options)
    except ValueError as error:
        parser.error(str(error))
    plan = _plan(options)
    if plan.rounds < 1 or plan.seconds < 1 or min(plan.connections) < 1:
        parser.error("--rounds, --seconds and --connections must be at least 1")
    # Ended, it ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about = machine()
    found = []
    for name in options.work:
        with tempfile.TemporaryDirectory(prefix="vitrine-serve-") as folder:
            progress(f"{name}: exporting the model and making requests")
            prepared = prepare(WORKS[name], Path(folder))
            found.append(measure(prepared, servers, plan, progress))
    print(render(found, plan, about))
    if options.json is not None:
        text = json.dumps(document(found, plan, about), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.plot is not None:
        from benchmarks.serving.plot import draw

        draw(found, options.plot)
    return _judge(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark serve",
        description="Measure Vitrine and its alternatives side by side.",
    )
    parser.add_argument(
        "--servers",
        nargs="+",
        metavar="NAME",
        help=f"only these of {', '.join(one.name for one in all_servers(VARIANTS))}, {LIMIT}",
    )
    parser.add_argument(
        "--work",
        nargs="+",
        choices=list(WORKS),
        default=list(WORKS),
        metavar="NAME",
        help=f"only these of {', '.join(WORKS)}",
    )
    parser.add_argument("--connections", nargs="+", type=int, metavar="N", help="(1 8 32 64)")
    parser.add_argument("--seconds", type=float, help="of one measurement (5)")
    parser.add_argument("--rounds", type=int, help="(5)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 s at 1 and 32")
    parser.add_argument(
        "--rate", type=float, help="of the open loop, per second; 0: none (by work)"
    )
    parser.add_argument("--workers", type=int, help="of every peer that takes a number of them")
    parser.add_argument(
        "--variants", type=Path, metavar="FILE", help="JSON list of variants of Vitrine to measure"
    )
    parser.add_argument("--lock", metavar="FILE", help="lock this file (flock) for each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw requests/s and p99")
    return parser


def _chosen(options: argparse.Namespace) -> list[Server]:
    variants = list(VARIANTS)
    if options.variants is not None:
        variants = read_variants(options.variants)
    servers = all_servers(variants)
    if options.servers is None:
        return servers
    known = [one.name for one in servers]
    if unknown := [name for name in options.servers if name not in [*known, LIMIT]]:
        raise ValueError(
            f"there is no server {unknown[0]!r}; there are {', '.join(known)}, {LIMIT}"
        )
    return [one for one in servers if one.name in options.servers]


def _plan(options: argparse.Namespace) -> Plan:
    plan = Plan(with_limit=options.servers is None or LIMIT in options.servers)
    if options.quick:
        plan = replace(plan, connections=(1, 32), seconds=2.0, rounds=2)
    named = ("connections", "seconds", "rounds", "rate", "workers", "lock")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    return replace(plan, **given)


def _judge(found: Sequence[WorkFound]) -> int:
    """Say which servers did not answer rightly, and return the exit code."""
    bad = [(work, one) for work in found for one in work.servers if one.failures]
    for work, one in bad:
        print(
            f"error: {work.name}, {one.name}: {one.failures} requests did not get the right "
            f"answer; one got: {one.sample}",
            file=sys.stderr,
        )
    measured = any(one.closed for work in found for one in work.servers)
    return 1 if bad or not measured else 0


if __name__ == "__main__":
    sys.exit(main())
