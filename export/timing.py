"""How fast engines are, side by side: medians of alternating calls in one process."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from engine import keep_memory, make
from export.archive import MODULE_FILE, WARM_UP_FILE
from export.inputs import Example
from formats.certificate import Batching, Certificate
from formats.engines import TORCHSCRIPT
from formats.signature import Signature

__all__ = [
    "Choice",
    "Timing",
    "batch_of",
    "fastest",
    "gain",
    "sizes_of",
    "threads_of",
    "time_archive",
    "time_call",
    "time_calls",
    "warm_up",
    "warm_up_example",
]

_SECONDS: Final = 2.0
_ROWS: Final = 8
# The profiling executor records on the first call of a shape and compiles on the second.
_WARM_UP_CALLS: Final = 3
_LEAST_ROUNDS: Final = 3
_MOST_ROUNDS: Final = 300
_GAIN: Final = 1.05


@dataclass(frozen=True)
class Timing:
    """What one engine takes.

    Attributes:
        engine: its name.
        milliseconds: number of rows to the median time of a call.
    """

    engine: str
    milliseconds: dict[int, float]


@dataclass(frozen=True)
class Choice:
    """The engine that serves where nobody says otherwise.

    Attributes:
        engine: its name.
        timings: what was measured to choose it; empty where that was not wanted.
    """

    engine: str
    timings: tuple[Timing, ...] = ()


def sizes_of(signature: Signature, batching: Batching) -> tuple[int, ...]:
    """Return the numbers of rows to time: 1, and a batch as far as one may be shared, up to 8."""
    if not (signature.row_axis and batching.independent):
        return (1,)
    return tuple(sorted({1, min(_ROWS, batching.max_rows)}))


def time_calls(
    calls: Mapping[str, Callable[..., Any]],
    example: Example,
    sizes: Sequence[int],
    *,
    row_axis: bool,
    seconds: float = _SECONDS,
    threads: int = 1,
) -> list[Timing]:
    """Time engines in turn, so that what else the machine does meets all of them.

    Args:
        calls: engine name to the function that answers.
        example: one input; its first row is repeated where axis 0 counts rows.
        sizes: numbers of rows.
        row_axis: whether axis 0 counts rows; without, the example is taken as it is.
        seconds: how long to measure, in all, after warming up.
        threads: intra-op threads; a worker has one unless it is told otherwise.

    Raises:
        RuntimeError: an engine fails on the example.
    """
    keep_memory()
    found: dict[str, dict[int, float]] = {name: {} for name in calls}
    with torch.inference_mode(), threads_of(threads):
        for rows in sizes:
            batch = batch_of(example, rows) if row_axis else example
            for call in calls.values():
                warm_up(call, batch)
            times = _alternate(calls, batch, seconds / len(sizes))
            for name, own in times.items():
                found[name][rows] = median(own) * 1e3
    return [Timing(name, milliseconds) for name, milliseconds in found.items()]


def time_archive(
    folder: Path,
    sizes: Sequence[int] | None = None,
    *,
    seconds: float = _SECONDS,
    threads: int = 1,
) -> list[Timing]:
    """Time every certified engine of an unpacked archive on its warm-up example.

    Args:
        folder: an unpacked archive.
        sizes: numbers of rows; by default those of `sizes_of`.
        seconds: as for `time_calls`.
        threads: as for `time_calls`.

    Raises:
        FormatError: a file of the archive is missing or of another version.
        RuntimeError: the module, or an engine, cannot be loaded or fails.
    """
    signature, certificate = Signature.read(folder), Certificate.read(folder)
    module = torch.jit.load(str(folder / MODULE_FILE), map_location="cpu").eval()
    names = [TORCHSCRIPT, *(one.name for one in certificate.engines if one.offered)]
    return time_calls(
        {name: make(name, module, None, folder).plain for name in names},
        warm_up_example(folder, signature),
        sizes or sizes_of(signature, certificate.batching),
        row_axis=signature.row_axis,
        seconds=seconds,
        threads=threads,
    )


def warm_up_example(folder: Path, signature: Signature) -> Example:
    """Return the one row that an unpacked archive warms up with."""
    with np.load(folder / WARM_UP_FILE, allow_pickle=False) as stored:
        return tuple(
            torch.from_numpy(stored[f"input_{number}"]).to(getattr(torch, spec.dtype))
            for number, spec in enumerate(signature.inputs)
        )


def fastest(timings: Sequence[Timing]) -> str:
    """Return the engine to serve with: the fastest if it gains 5 %, else TorchScript.

    An engine's gain is the geometric mean, over the numbers of rows, of how many times faster
    than TorchScript it is.
    """
    base = next(one for one in timings if one.engine == TORCHSCRIPT)
    gains = {one.engine: gain(base, one) for one in timings}
    best = max(gains, key=lambda name: gains[name])
    return best if gains[best] >= _GAIN else TORCHSCRIPT


def gain(base: Timing, other: Timing) -> float:
    """Return how many times faster `other` is than `base`, as `fastest` compares them."""
    logs = [math.log(base.milliseconds[rows] / own) for rows, own in other.milliseconds.items()]
    return math.exp(sum(logs) / len(logs))


def batch_of(example: Example, rows: int) -> Example:
    """Return a batch of `rows` copies of an example's first row."""
    return tuple(part[:1].repeat(rows, *[1] * (part.ndim - 1)).contiguous() for part in example)


def _alternate(
    calls: Mapping[str, Callable[..., Any]], batch: Example, seconds: float
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds
    for done in range(_MOST_ROUNDS):
        if done >= _LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            times[name].append(time_call(call, batch))
    return times


def warm_up(call: Callable[..., Any], batch: Example) -> None:
    """Call a graph until it is compiled for inputs of these shapes."""
    for _ in range(_WARM_UP_CALLS):
        time_call(call, batch)


def time_call(call: Callable[..., Any], batch: Example) -> float:
    """Return the seconds that one call takes."""
    # A model may work in place on what it is given.
    copied = [part.clone() for part in batch]
    started = time.perf_counter()
    call(*copied)
    return time.perf_counter() - started


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Use so many intra-op threads in this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
