"""How fast an engine is when several processes run it at once, as the workers of a server do."""

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from engine import keep_memory, make
from export.archive import MODULE_FILE
from export.errors import ExportError
from export.inputs import Example
from export.timing import batch_of, time_call, warm_up, warm_up_example
from formats.signature import Signature

__all__ = ["Load", "Plan", "measure"]

_LEAST_CALLS: Final = 3
_PATIENCE_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        folder: an unpacked archive.
        engine: name of the engine.
        sizes: numbers of rows of a call.
        seconds: how long to measure each of them.
    """

    folder: Path
    engine: str
    sizes: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Load:
    """What a call takes while `workers` processes of `threads` threads call without a pause.

    Attributes:
        workers: processes.
        threads: intra-op threads of each.
        rows: rows of a call; 1 for a model without a row axis.
        milliseconds: median time of a call, over all processes.
        slow_milliseconds: its 99th percentile.
        rows_per_second: of all processes together.
    """

    workers: int
    threads: int
    rows: int
    milliseconds: float
    slow_milliseconds: float
    rows_per_second: float


def measure(plan: Plan, workers: int, threads: int) -> list[Load]:
    """Run an engine in several processes at once, and time every number of rows of the plan.

    Args:
        plan: what to run.
        workers: how many processes.
        threads: intra-op threads of each.

    Raises:
        ExportError: a process failed, or did not end in ten minutes.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers)
    with context.Pool(workers, initializer=_share, initargs=(barrier,)) as pool:
        work = pool.starmap_async(_times, [(plan, threads)] * workers, chunksize=1)
        try:
            times = work.get(_PATIENCE_SECONDS)
        except multiprocessing.TimeoutError:
            raise ExportError(
                f"{workers} processes of {threads} threads did not end in {_PATIENCE_SECONDS:g} s"
            ) from None
    return [
        _load(workers, threads, rows, [one[place] for one in times])
        for place, rows in enumerate(plan.sizes)
    ]


# What a process of the pool has from the one that made it.
_shared: dict[str, Any] = {}


def _share(barrier: Any) -> None:
    _shared["barrier"] = barrier


def _times(plan: Plan, threads: int) -> list[list[float]]:
    """Return, for each number of rows, the seconds of each call; in a process of its own."""
    torch.set_num_threads(threads)
    keep_memory()
    signature = Signature.read(plan.folder)
    module = torch.jit.load(str(plan.folder / MODULE_FILE), map_location="cpu").eval()
    call = make(plan.engine, module, None, plan.folder).plain
    example = warm_up_example(plan.folder, signature)
    found = []
    with torch.inference_mode():
        for rows in plan.sizes:
            batch = batch_of(example, rows) if signature.row_axis else example
            warm_up(call, batch)
            _shared["barrier"].wait(_PATIENCE_SECONDS)
            found.append(_calls(call, batch, plan.seconds))
    return found


def _calls(call: Any, batch: Example, seconds: float) -> list[float]:
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < _LEAST_CALLS or time.perf_counter() < deadline:
        times.append(time_call(call, batch))
    return times


def _load(workers: int, threads: int, rows: int, times: Sequence[Sequence[float]]) -> Load:
    everything = sorted(seconds for one in times for seconds in one)
    return Load(
        workers,
        threads,
        rows,
        milliseconds=median(everything) * 1e3,
        slow_milliseconds=everything[min(len(everything) - 1, len(everything) * 99 // 100)] * 1e3,
        rows_per_second=sum(rows / median(one) for one in times),
    )
