"""The tables and the JSON document of a run."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import torch

from benchmarks.activations import Spread
from benchmarks.serving.figures import Closed, Opened
from benchmarks.serving.measure import Found, Plan, WorkFound
from benchmarks.serving.servers import STOCK

__all__ = ["document", "machine", "ratios", "render", "shown"]

_NONE: Final = "–"
_FEW_LETTERS: Final = 60


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            named = (line for line in file if line.startswith("model name"))
            return next(named, ":").partition(":")[2].strip()
    except OSError:
        return platform.processor()


def ratios(found: WorkFound, connections: int) -> dict[str, dict[str, Spread]]:
    """Return requests per second over those of stock TorchServe, and of the best peer of a round.

    Args:
        found: of one work.
        connections: the load.

    Returns:
        By server, "stock" and "best", each where it was measured; all quotients are within a round.
    """
    speeds = {
        one.name: np.array([each.per_second for each in one.closed[connections]])
        for one in found.servers
        if one.closed.get(connections)
    }
    bases = {}
    if STOCK in speeds:
        bases["stock"] = speeds[STOCK]
    peers = [speeds[one.name] for one in found.servers if one.kind == "peer" and one.name in speeds]
    if peers:
        bases["best"] = np.max(peers, axis=0)
    return {
        name: {
            key: Spread.of((own / base).tolist()) for key, base in bases.items() if (base > 0).all()
        }
        for name, own in speeds.items()
    }


def render(found: Sequence[WorkFound], plan: Plan, about: Mapping[str, Any]) -> str:
    """Return everything as Markdown tables."""
    lines = [
        f"{about['processor']}, {about['cores']} cores, load {about['load_average']} at the start; "
        f"torch {about['torch']}; {plan.rounds} rounds of {plan.seconds:g} s, medians [quartiles]; "
        "ratios are taken within a round. Servers and load generator share the cores.",
    ]
    for work in found:
        lines += ["", f"## {work.title}", *_work(work)]
    return "\n".join(lines)


def _work(work: WorkFound) -> list[str]:
    lines: list[str] = []
    for connections in _loads(work):
        lines += ["", *_closed(work, connections)]
    if any(one.opened for one in work.servers):
        lines += ["", *_opened(work)]
    if work.limit:
        own = [f"{size} rows {shown(Spread.of(own))}" for size, own in sorted(work.limit.items())]
        lines += ["", f"The frozen model alone, one thread, rows/s by batch: {'; '.join(own)}."]
    return [*lines, "", *_about(work)]


def _loads(work: WorkFound) -> list[int]:
    return sorted({load for one in work.servers for load in one.closed})


def _closed(work: WorkFound, connections: int) -> list[str]:
    quotients = ratios(work, connections)
    lines = [
        f"| {connections} connection{'s' * (connections > 1)} | requests/s | × stock TorchServe "
        "| × best peer | p50, ms | p90, ms | p99, ms | cores: server | wrk | others | failures |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in work.servers:
        rounds = one.closed.get(connections)
        if not rounds:
            lines.append(_missing(one, 11))
            continue
        cells = [
            _spread(rounds, lambda each: each.per_second),
            *(_quotient(quotients[one.name].get(key), one) for key in ("stock", "best")),
            *_latencies([each.latency_ms for each in rounds]),
            *_cores(rounds),
            str(sum(each.failures for each in rounds)),
        ]
        lines.append(f"| {one.name} | {' | '.join(cells)} |")
    return lines


def _opened(work: WorkFound) -> list[str]:
    rate = next(one.opened[0].rate for one in work.servers if one.opened)
    lines = [
        f"| {rate:g} requests/s at random times | p50, ms | p90, ms | p99, ms "
        "| sender's lag p50, ms | lag p99, ms | cores: server | sender | others | failures |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in work.servers:
        if not one.opened:
            lines.append(_missing(one, 10))
            continue
        lags = _latencies([each.lag_ms for each in one.opened])
        cells = [
            *_latencies([each.latency_ms for each in one.opened]),
            lags[0],
            lags[2],
            *_cores(one.opened),
            str(sum(each.failures for each in one.opened)),
        ]
        lines.append(f"| {one.name} | {' | '.join(cells)} |")
    return lines


def _about(work: WorkFound) -> list[str]:
    lines = [
        "| server | what | workers | ready after, s | memory, MB | idle, cores |",
        "|---|---|---|---|---|---|",
    ]
    for one in work.servers:
        if one.not_run:
            lines.append(_missing(one, 6, whole=True))
            continue
        workers = str(one.workers) if one.kind == "peer" and one.name != STOCK else _NONE
        lines.append(
            f"| {one.name} | {one.title} | {workers} | {one.start_seconds:.1f} "
            f"| {one.memory_mb:.0f} | {one.idle_cores:.3f} |"
        )
    return lines


def _missing(one: Found, columns: int, *, whole: bool = False) -> str:
    """Say why a server has no figures: in a few words, and in the last table in all of them."""
    words = " ".join(one.not_run.split())
    if not whole and len(words) > _FEW_LETTERS:
        words = words[:_FEW_LETTERS] + "…"
    reason = f"not run: {words}".replace("|", "\\|")
    return f"| {one.name} | {reason} |" + " |" * (columns - 2)


def _latencies(rounds: Sequence[Mapping[str, float]]) -> list[str]:
    return [shown(Spread.of([each[name] for each in rounds]), 2) for name in rounds[0]]


def _cores(rounds: Sequence[Closed | Opened]) -> list[str]:
    return [
        shown(Spread.of([each.server_cores for each in rounds]), 2),
        shown(Spread.of([each.client_cores for each in rounds]), 2),
        shown(Spread.of([each.other_cores for each in rounds]), 2),
    ]


def _spread(rounds: Sequence[Closed], value: Callable[[Closed], float]) -> str:
    return shown(Spread.of([value(each) for each in rounds]))


def _quotient(spread: Spread | None, one: Found) -> str:
    return shown(spread, 2) if spread is not None and one.kind != "reference" else _NONE


def shown(spread: Spread, digits: int | None = None) -> str:
    """Show a median with its quartiles; without digits, three that count."""
    if digits is None:
        digits = 0 if spread.median >= 100 else 1 if spread.median >= 10 else 2
    middle, low, high = (
        f"{value:,.{digits}f}" for value in (spread.median, spread.low, spread.high)
    )
    return f"{middle} [{low}, {high}]"


def document(found: Sequence[WorkFound], plan: Plan, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that was measured, and the ratios, for a JSON file."""
    return {
        "machine": dict(about),
        "plan": asdict(plan),
        "works": [
            {
                **asdict(work),
                "ratios": {
                    str(load): {
                        name: {key: asdict(spread) for key, spread in own.items()}
                        for name, own in ratios(work, load).items()
                    }
                    for load in _loads(work)
                },
            }
            for work in found
        ],
    }
