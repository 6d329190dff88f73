"""`python -m export tune`: batch size, delay, workers, threads and engine, chosen by measurement.

The engine is timed on this machine with as many processes and threads as it has cores. What a
server adds to that is not measured here, but known from `scripts/benchmark serve`: `_SERVER`.
"""

import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import yaml

from engine import processor
from export.archive import CONFIG_FILE, WARM_UP_FILE, configure
from export.contention import Load, Plan, measure
from export.errors import ExportError
from export.timing import fastest, time_archive
from formats.certificate import Certificate
from formats.document import FormatError
from formats.signature import Signature

__all__ = ["Goal", "Setting", "choose", "describe", "plans", "setting_of", "table", "tune"]

Goal = Literal["throughput", "latency"]

_SIZES: Final = (1, 2, 4, 8, 16, 32)
_SECONDS: Final = 0.4
_LEAST_DELAY_MS: Final = 1
"""TorchServe lets a lone request wait this long for company, and can wait no shorter."""
_MOST_DELAY_MS: Final = 20
_DELAY_SHARE: Final = 0.05
"""Of a batch's time, that it may wait to fill up: what it costs, and a full batch gains more."""
_CLOSE: Final = 1.1
"""What is nearer than this counts as the same. Then smaller batches are better: half as many
requests keep all workers busy, and the next one is gathered while one runs."""
_CLOSE_WORKERS: Final = 1.03
"""The same for fewer workers, which save memory."""


@dataclass(frozen=True)
class _Server:
    """What serving adds to the engine's time, in ms, as measured with a small model.

    Attributes:
        request: of a worker, for each request: reading, checking and answering it.
        batch: of a worker, for each batch.
        others: of the processes before the worker, for each request.
        transit: of a lone request's time, beside the engine's and the delay's.
        megabyte: of a worker, for each 1,000,000 bytes that a request has as binary.
        others_megabyte: the same of the processes before it.
    """

    request: float = 0.055
    batch: float = 0.15
    others: float = 0.08
    transit: float = 0.6
    megabyte: float = 1.0
    others_megabyte: float = 4.0


_SERVER: Final = _Server()


@dataclass(frozen=True)
class Setting:
    """One way to serve a model, and what is to be expected of it.

    Attributes:
        load: what was measured.
        delay: milliseconds that an incomplete batch waits.
        requests_per_second: of one row each, at most.
        alone_ms: time of a request that nobody else disturbs.
        busy_ms: of one that arrives as a batch has just begun, and waits for it.
    """

    load: Load
    delay: int
    requests_per_second: float
    alone_ms: float
    busy_ms: float


def plans(cores: int) -> list[tuple[int, int]]:
    """Return the workers and threads to try: 1, 2, 4... threads, in one worker or all that fit."""
    threads = [2**power for power in range(cores.bit_length()) if 2**power <= cores]
    return sorted({(workers, own) for own in threads for workers in (1, cores // own)})


def setting_of(load: Load, alone: Load, cores: int, row_bytes: int = 0) -> Setting:
    """Say what to expect of a server.

    Args:
        load: its workers, threads and batch size.
        alone: the same workers and threads with one row.
        cores: what all processes share.
        row_bytes: what the arrays of one row take.
    """
    request = _SERVER.request + _SERVER.megabyte * row_bytes / 1e6
    arrives = _SERVER.others_megabyte * row_bytes / 1e6
    batched = load.rows > 1
    delay = _LEAST_DELAY_MS
    if batched:
        delay = min(_MOST_DELAY_MS, max(delay, round(load.milliseconds * _DELAY_SHARE)))
    batch_ms = load.milliseconds + _SERVER.batch + load.rows * request
    # Large bodies come after the answers to those before them, and meanwhile a worker waits.
    by_workers = load.workers * load.rows / (batch_ms + load.rows * arrives)
    own = load.threads * load.milliseconds / load.rows
    others = _SERVER.others + arrives
    by_cores = cores / (own + request + _SERVER.batch / load.rows + others)
    waits = delay if batched else 0
    return Setting(
        load,
        delay,
        requests_per_second=1e3 * min(by_workers, by_cores),
        alone_ms=alone.milliseconds + _SERVER.transit + request + arrives + waits,
        busy_ms=2 * batch_ms + waits,
    )


def choose(settings: Sequence[Setting], goal: Goal, limit_ms: float | None = None) -> Setting:
    """Choose the setting that serves a goal.

    Args:
        settings: what can be had.
        goal: "latency" for the shortest time of a lone request, "throughput" for the most
            requests per second.
        limit_ms: for "throughput", the longest that a request may take on a busy server.

    Raises:
        ExportError: no setting is within the limit.
    """
    if goal == "latency":
        least = min(one.alone_ms for one in settings)
        return min((one for one in settings if one.alone_ms <= least * _CLOSE), key=_thrift)
    fit = [one for one in settings if limit_ms is None or one.busy_ms <= limit_ms]
    if not fit:
        best = min(one.busy_ms for one in settings)
        raise ExportError(
            f"no setting answers within {limit_ms:g} ms on a busy server; the shortest is "
            f"{best:.3g} ms",
            hint="ask for more, or export a faster model (--precision bfloat16)",
        )
    near = _near(fit, _CLOSE_WORKERS)
    fewest = min(near, key=lambda one: (one.load.workers, -one.requests_per_second)).load
    same = (fewest.workers, fewest.threads)
    alike = [one for one in fit if (one.load.workers, one.load.threads) == same]
    return min(_near(alike, _CLOSE), key=_thrift)


def _near(settings: Sequence[Setting], close: float) -> list[Setting]:
    most = max(one.requests_per_second for one in settings)
    return [one for one in settings if one.requests_per_second * close >= most]


def _thrift(setting: Setting) -> tuple[int, int, int]:
    return (setting.load.workers, setting.load.rows, setting.load.threads)


def tune(
    archive: Path,
    folder: Path,
    goal: Goal,
    limit_ms: float | None = None,
    *,
    engine: str | None = None,
    cores: int | None = None,
    progress: Callable[[str], Any] = lambda line: None,
) -> tuple[list[Setting], Setting]:
    """Measure an archive on this machine, and write the chosen setting into it.

    Args:
        archive: the `.mar`, which is replaced as a whole.
        folder: an empty folder to unpack it in.
        goal: as for `choose`.
        limit_ms: as for `choose`.
        engine: which one to measure; by default the fastest that is certified.
        cores: how many the server may use; by default those this process may run on.
        progress: called with what is being measured.

    Returns:
        All settings, and the one that was chosen.

    Raises:
        ExportError: it is no archive of this version, the engine is not certified, or no setting
            is within the limit.
    """
    signature, certificate = _unpack(archive, folder)
    cores = cores or len(os.sched_getaffinity(0))
    if engine is None:
        progress("engines")
        engine = fastest(time_archive(folder))
    elif not certificate.offers(engine):
        raise ExportError(f"engine {engine!r} was not certified for it", where=str(archive))
    sizes = _sizes(signature, certificate)
    row_bytes = _row_bytes(folder)
    settings: list[Setting] = []
    for workers, threads in plans(cores):
        progress(f"{workers} worker(s) of {threads} thread(s)")
        loads = measure(Plan(folder, engine, sizes, _SECONDS), workers, threads)
        settings += [setting_of(load, loads[0], cores, row_bytes) for load in loads]
    chosen = choose(settings, goal, limit_ms)
    configure(archive, _config(folder, chosen, engine, goal, limit_ms))
    return settings, chosen


def table(settings: Iterable[Setting], chosen: Setting) -> str:
    """Return what was measured, as a table for people."""
    lines = [
        "  workers  threads  batch  ms a batch  requests/s  alone ms  busy ms",
    ]
    for one in settings:
        mark = "→" if one is chosen else " "
        load = one.load
        lines.append(
            f"{mark} {load.workers:7d}  {load.threads:7d}  {load.rows:5d}"
            f"  {load.milliseconds:10.3f}  {one.requests_per_second:10.0f}"
            f"  {one.alone_ms:8.2f}  {one.busy_ms:7.2f}"
        )
    return "\n".join(lines)


def describe(settings: Sequence[Setting], chosen: Setting) -> str:
    """Return the trade that a setting makes, in one sentence."""
    least = choose(settings, "latency")
    most = choose(settings, "throughput")
    load = chosen.load
    own = f"{load.workers} worker(s) of {load.threads} thread(s), batches of up to {load.rows}"
    if load.rows > 1:
        own += f" that wait {chosen.delay} ms to fill"
    if chosen is least is most:
        return f"{own}: both the fewest milliseconds and the most requests per second"
    other, name = (most, "throughput") if chosen is least else (least, "latency")
    return (
        f"{own}: about {chosen.requests_per_second:.0f} requests/s and {chosen.alone_ms:.1f} ms "
        f"for a lone one; with the goal {name} it would be {other.requests_per_second:.0f} and "
        f"{other.alone_ms:.1f} ms"
    )


def _unpack(archive: Path, folder: Path) -> tuple[Signature, Certificate]:
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        return Signature.read(folder), Certificate.read(folder)
    except (OSError, zipfile.BadZipFile, FormatError) as error:
        raise ExportError(
            str(error) or type(error).__name__,
            where=str(archive),
            hint="tune takes an archive that this version of export wrote",
        ) from None


def _sizes(signature: Signature, certificate: Certificate) -> tuple[int, ...]:
    batching = certificate.batching
    if not (signature.row_axis and batching.independent):
        return (1,)
    return tuple(size for size in _SIZES if size <= batching.max_rows)


def _row_bytes(folder: Path) -> int:
    with np.load(folder / WARM_UP_FILE) as example:
        return sum(example[name].nbytes for name in example.files)


def _config(
    folder: Path, chosen: Setting, engine: str, goal: Goal, limit_ms: float | None
) -> dict[str, Any]:
    load = chosen.load
    config = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config |= {
        "minWorkers": load.workers,
        "maxWorkers": load.workers,
        "batchSize": load.rows,
        "maxBatchDelay": chosen.delay,
    }
    tuned: dict[str, Any] = {"goal": goal, "processor": processor()}
    if limit_ms is not None:
        tuned["within_ms"] = limit_ms
    config["vitrine"] |= {"threads": load.threads, "engine": engine, "tuned": tuned}
    return dict(config)
