"""The limit: the frozen model in a loop in one process, `python -m benchmarks.serving.limit`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = ["BATCHES", "rows_per_second"]

BATCHES: Final = (1, 8, 16)
"""Rows of a call."""

_ROOT: Final = Path(__file__).resolve().parents[2]
_WARM_UP_CALLS: Final = 5


def rows_per_second(model: Path, rows: Path, seconds: float) -> dict[int, float]:
    """Time the frozen model in a process of its own, on one thread.

    Args:
        model: the TorchScript file.
        rows: .npy file, float32 [at least 16, ...].
        seconds: for each batch size.

    Returns:
        Rows per second by batch size.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.limit", str(model), str(rows), str(seconds)],
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return {int(batch): rate for batch, rate in json.loads(done.stdout).items()}


def _measure(frozen: Any, batch: Any, seconds: float) -> float:
    for _ in range(_WARM_UP_CALLS):
        frozen(batch)
    calls, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        frozen(batch)
        calls += 1
    return calls * len(batch) / taken


def _main() -> None:
    import torch

    model, rows, seconds = sys.argv[1:]
    torch.set_num_threads(1)
    inputs = torch.from_numpy(np.load(rows))
    found = {}
    with torch.inference_mode():
        for size in BATCHES:
            # Anew for each: the graph is compiled for the first shape that it meets.
            frozen: Any = torch.jit.freeze(torch.jit.load(model).eval())
            found[size] = _measure(frozen, inputs[:size], float(seconds))
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
