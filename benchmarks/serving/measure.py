"""Starts all servers of a work, and measures them in alternating rounds."""

import fcntl
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.serving import closed, limit, opened, payload, trivial
from benchmarks.serving.figures import Closed, Opened
from benchmarks.serving.payload import Payload
from benchmarks.serving.prepared import Prepared
from benchmarks.serving.running import NotRun, Running, start
from benchmarks.serving.servers import TRIVIAL, Server

__all__ = ["Found", "Plan", "WorkFound", "locked", "measure"]

_SEED: Final = 0
_IDLE_SECONDS: Final = 3.0
_BUSY_CORES: Final = 0.02
_LIMIT_ROWS: Final = max(limit.BATCHES)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        connections: loads of the closed loop.
        seconds: of one measurement.
        rounds: how often everything is measured.
        rate: requests per second of the open loop; None for the work's own, 0 for no open loop.
        with_limit: whether to time the model alone, too.
        workers: worker processes of every peer; None for what is best for each.
        start_seconds: patience with a server that starts.
        lock: file that is locked for each round; other work can wait for it.
    """

    connections: Sequence[int] = (1, 8, 32, 64)
    seconds: float = 5.0
    rounds: int = 5
    rate: float | None = None
    with_limit: bool = True
    workers: int | None = None
    start_seconds: float = 120.0
    lock: str | None = None


@dataclass
class Found:
    """What was found of one server.

    Attributes:
        name, title, kind: as in `Server`.
        workers: worker processes, where the server was told how many.
        not_run: why it was not measured; empty if it was.
        start_seconds: from its start to its first right answer.
        idle_cores: processors it keeps busy when nobody asks.
        memory_mb: of all its processes, after the first round.
        closed: by number of connections, one a round.
        opened: one a round.
    """

    name: str
    title: str
    kind: str
    workers: int
    not_run: str = ""
    start_seconds: float = 0.0
    idle_cores: float = 0.0
    memory_mb: float = 0.0
    closed: dict[int, list[Closed]] = field(default_factory=dict)
    opened: list[Opened] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """Requests that did not get the right answer."""
        return sum(one.failures for one in self._all())

    @property
    def sample(self) -> str:
        """An answer that was not right."""
        return next((one.sample for one in self._all() if one.sample), "")

    def _all(self) -> list[Closed | Opened]:
        return [*(one for rounds in self.closed.values() for one in rounds), *self.opened]


@dataclass
class WorkFound:
    """What was found of one work.

    Attributes:
        name, title: as in `Work`.
        servers: in the order of the table.
        limit: rows per second of the model alone, by batch size, one a round.
    """

    name: str
    title: str
    servers: list[Found]
    limit: dict[int, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Ready:
    found: Found
    running: Running
    payload: Path
    requests: Payload

    @property
    def busy(self) -> bool:
        """Whether it takes the processor from others even when nobody asks."""
        return self.found.idle_cores > _BUSY_CORES


def measure(
    prepared: Prepared, servers: Sequence[Server], plan: Plan, progress: Progress
) -> WorkFound:
    """Measure servers side by side.

    All are started before anything is measured. A round measures each of them once at each load, in
    an order of its own. Those that take a part of a core when idle are paused meanwhile. One that
    ends or fails on the way is not run, and the others go on.

    Args:
        prepared: the work.
        servers: which.
        plan: how.
        progress: called with a line that says what is being done.
    """
    work = prepared.work
    found = WorkFound(work.name, work.title, [])
    with ExitStack() as stack:
        ready = []
        for server in servers:
            own = Found(server.name, server.title, server.kind, _workers(server, prepared, plan))
            found.servers.append(own)
            progress(f"{work.name}: starting {server.name}")
            try:
                ready.append(stack.enter_context(_started(server, prepared, plan, own)))
            except (NotRun, RuntimeError) as error:
                own.not_run = str(error)
                progress(f"{work.name}: {server.name} is not run: {error}")
        for one in ready:
            progress(f"{work.name}: warming {one.found.name} up")
            for connections in sorted({1, max(plan.connections)}):
                closed.load(one.running, one.payload, _result(prepared), connections, 1)
                one.running.settle()
        _watch_idle(ready, partial(progress, f"{work.name}: idle"))
        for one in ready:
            if one.busy:
                one.running.pause()
        _measure_rounds(prepared, ready, plan, found, progress)
    return found


def _workers(server: Server, prepared: Prepared, plan: Plan) -> int:
    return server.workers_for(prepared.work) if plan.workers is None else plan.workers


@contextmanager
def _started(server: Server, prepared: Prepared, plan: Plan, found: Found) -> Iterator[_Ready]:
    work, cases = prepared.work, prepared.cases
    folder = prepared.scratch / "payloads" / server.name
    expected = trivial.expected(cases.expected) if server.name == TRIVIAL else cases.expected
    payload.write(folder, server.encode(work, cases.inputs), expected, work.each)
    launch = server.launch(prepared, found.workers)
    log = prepared.scratch / f"{server.name}.log"
    requests = payload.read(folder)
    running = start(launch, requests, log, plan.start_seconds)
    try:
        found.start_seconds = running.start_seconds
        yield _Ready(found, running, folder, requests)
    finally:
        running.stop()


def _watch_idle(ready: Sequence[_Ready], progress: Callable[[], None]) -> None:
    progress()
    before = [one.running.cpu_seconds() for one in ready]
    time.sleep(_IDLE_SECONDS)
    for one, earlier in zip(ready, before, strict=True):
        one.found.idle_cores = (one.running.cpu_seconds() - earlier) / _IDLE_SECONDS


def _measure_rounds(
    prepared: Prepared,
    ready: Sequence[_Ready],
    plan: Plan,
    found: WorkFound,
    progress: Progress,
) -> None:
    shuffle = random.Random(_SEED).shuffle  # noqa: S311 (an order, not a secret)
    order = list(ready)
    for number in range(plan.rounds):
        at = f"{prepared.work.name}: round {number + 1}/{plan.rounds}"
        with locked(plan.lock):
            # Anew for each load, so that none always follows the same neighbour.
            for connections in plan.connections:
                shuffle(order)
                for one in list(order):
                    progress(f"{at}, {connections} connections, {one.found.name}")
                    with _kept(one, order):
                        figures = closed.load(
                            one.running, one.payload, _result(prepared), connections, plan.seconds
                        )
                        one.found.closed.setdefault(connections, []).append(figures)
            shuffle(order)
            _open_all(order, prepared, plan, partial(progress, f"{at}, open loop"))
            if plan.with_limit:
                progress(f"{at}, the model alone")
                for batch, speed in _limit(prepared, plan).items():
                    found.limit.setdefault(batch, []).append(speed)
        if not number:
            for one in ready:
                one.found.memory_mb = one.running.memory_mb()


def _open_all(
    order: list[_Ready], prepared: Prepared, plan: Plan, progress: Callable[[], None]
) -> None:
    rate = prepared.work.rate if plan.rate is None else plan.rate
    for one in list(order) if rate else ():
        progress()
        with _kept(one, order):
            figures = opened.load(one.running, one.payload, rate, plan.seconds)
            one.found.opened.append(figures)


@contextmanager
def _kept(one: _Ready, order: list[_Ready]) -> Iterator[None]:
    """Let a server work while it is measured; leave it out from then on where that fails."""
    try:
        if one.busy:
            one.running.resume(one.requests)
        yield
        one.running.settle()
        if one.busy:
            one.running.pause()
    except (NotRun, RuntimeError, subprocess.TimeoutExpired) as error:
        one.found.not_run = f"failed while it was measured: {error}"
        one.found.closed.clear()
        one.found.opened.clear()
        order.remove(one)


@contextmanager
def locked(path: str | None) -> Iterator[None]:
    """Hold a lock on a file, so that other work on the machine can wait; on none for no path."""
    if path is None:
        yield
        return
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _limit(prepared: Prepared, plan: Plan) -> dict[int, float]:
    rows = prepared.scratch / "rows.npy"
    np.save(rows, prepared.cases.inputs[:_LIMIT_ROWS])
    return limit.rows_per_second(prepared.model, rows, plan.seconds / len(limit.BATCHES))


def _result(prepared: Prepared) -> Path:
    return prepared.scratch / "result.json"
