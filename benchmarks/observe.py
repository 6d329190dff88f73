"""How soon a page shows a long activation log: `scripts/benchmark observe`.

Writes a log, starts `python -m observe page` on it, which has no index yet, and looks with an HTTP
client and with Chromium while it reads. What the page then says of a part of the log is compared
with what pandas makes of the same lines.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import psutil
import requests
from numpy.typing import NDArray
from playwright.sync_api import Page, sync_playwright

from export.baseline import summarise
from formats.baseline import FILE_NAME

__all__ = ["main", "write_baseline", "write_log"]

ROOT: Final = Path(__file__).resolve().parent.parent
_MODEL: Final = "network"
_START: Final = 1_790_000_000_000
_STEP: Final = 50
_BLOCK: Final = 20_000
_SUBSET: Final = 20_000
_ROUNDS: Final = 5
_PATIENCE: Final = 1800.0
_STATISTICS: Final = ("mean", "std", "min", "max", "zero_fraction")


@dataclass
class Figures:
    """What was measured, in seconds and bytes."""

    records: int = 0
    size: int = 0
    answer: float = 0.0
    painted: float = 0.0
    at: float = 0.0
    complete: float = 0.0
    later: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    peak: int = 0
    difference: float = 0.0


def write_log(path: Path, records: int, layers: int = 5) -> None:
    """Write a log of a network without faults, a record each 50 ms.

    Args:
        path: of the file.
        records: how many.
        layers: of the network.
    """
    one = ", ".join(
        f'"block.{number}.relu": {{"elements": 64, "mean": %r, "std": %r, "min": 0.0, '
        '"max": %r, "zero_fraction": %r, "non_finite": 0}'
        for number in range(layers)
    )
    line = (
        '{"format": "vitrine.activation", "version": 1, "time": "%s", "model": "' + _MODEL + '", '
        '"model_version": "1.0", "request_id": "%032x", "traceparent": null, '
        '"correlation_id": null, "reason": "sampled", "rows": 1, "error": null, '
        '"layers": {' + one + '}, "flags": {"non_finite": null, "dead": []}}\n'
    )
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, records, _BLOCK):
            count = min(_BLOCK, records - first)
            numbers = _numbers(count, layers, seed=first).reshape(count, -1)
            file.writelines(
                line % (_rfc3339(_START + _STEP * (first + place)), first + place, *row)
                for place, row in enumerate(numbers.tolist())
            )


def write_baseline(folder: Path, layers: int = 5) -> None:
    """Write the baseline of that network into a folder."""
    rows = [
        {
            f"block.{number}.relu": dict(
                zip(_STATISTICS, (mean, std, 0.0, most, zero), strict=True)
            )
            for number, (mean, std, most, zero) in enumerate(row)
        }
        for row in _numbers(1000, layers, seed=1).tolist()
    ]
    summarise("calibration", rows).write(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark observe", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--log", type=Path, help="one that this wrote before; not deleted")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="vitrine-observe-") as folder:
        path = options.log or Path(folder) / f"{_MODEL}.jsonl"
        if options.log is None or not path.exists():
            print(f"writing {options.records:,} records", file=sys.stderr)
            write_log(path, options.records, options.layers)
        write_baseline(Path(folder), options.layers)
        figures = _measure(path, Path(folder) / FILE_NAME)
    print(_table(figures))
    return 0 if figures.difference < 1e-9 else 1


def _measure(path: Path, baseline: Path) -> Figures:
    figures = Figures(size=path.stat().st_size)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_chromium(), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        page = browser.new_page()
        began = time.monotonic()
        with _serving(path, baseline) as (address, process), _peak(process.pid, figures):
            model = f"{address}m/{_MODEL}"
            _until(lambda: requests.get(model, timeout=60).status_code == 200)
            figures.answer = time.monotonic() - began
            _look(page, model)
            figures.painted = time.monotonic() - began
            state = _state(address)
            figures.at = state["read_bytes"] / state["found_bytes"]
            _until(lambda: bool(_state(address)["complete"]))
            figures.complete = time.monotonic() - began
            figures.records = _state(address)["records"]
            # Each a window of its own, so that nothing is left from the one before.
            figures.later = [
                _look(page, f"{model}?since={_START - 1 - number}") for number in range(_ROUNDS)
            ]
            figures.again = [_look(page, model) for _ in range(_ROUNDS)]
            figures.difference = _compare(address, path)
        browser.close()
    return figures


def _look(page: Page, address: str) -> float:
    began = time.monotonic()
    page.goto(address)
    page.locator("table.heat tbody td").first.wait_for(state="attached")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    return time.monotonic() - began


@contextmanager
def _serving(path: Path, baseline: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "observe", "page", str(path), "--port", "0"]
    command += ["--baseline", f"{_MODEL}={baseline}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def _peak(pid: int, figures: Figures) -> Iterator[None]:
    """Watch how much memory a process and its children have, shared pages counted once."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            total = 0
            try:
                root = psutil.Process(pid)
                tree = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for one in tree:
                try:
                    total += one.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            figures.peak = max(figures.peak, total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _compare(address: str, path: Path) -> float:
    """Return the greatest relative difference between the page and pandas, over the first lines."""
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line, _ in zip(file, range(_SUBSET), strict=False)]
    table = pd.DataFrame(
        [
            {"key": key, **{name: layer[name] for name in _STATISTICS}}
            for line in lines
            for key, layer in line["layers"].items()
        ]
    )
    together = {"mean": "mean", "std": "mean", "min": "min", "max": "max", "zero_fraction": "mean"}
    wanted = table.groupby("key").agg(together)
    since, until = (_milliseconds(lines[place]["time"]) for place in (0, -1))
    answer = requests.get(
        f"{address}api/m/{_MODEL}/overview",
        params={"since": str(since), "until": str(until + 1)},
        timeout=60,
    ).json()
    found = {layer["key"]: layer for layer in answer}
    assert set(found) == set(wanted.index)
    assert all(layer["records"] == len(lines) for layer in answer)
    differences = (
        abs(found[key]["statistics"][name] - value) / max(1e-12, abs(value))
        if value
        else abs(found[key]["statistics"][name])
        for key, row in wanted.iterrows()
        for name, value in row.items()
    )
    return float(max(differences))


def _state(address: str) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{address}api/state", timeout=60).json()
    return found


def _until(holds: Any) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("the page did not get there")
        time.sleep(0.05)


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no Chromium; install the system's package chromium")


def _table(figures: Figures) -> str:
    rows = [
        ("records", f"{figures.records:,}"),
        ("size of the log", f"{figures.size / 1e6:,.0f} MB"),
        ("first answer with data", f"{figures.answer:.2f} s"),
        ("first view in Chromium", f"{figures.painted:.2f} s, {figures.at:.0%} read"),
        ("all read", f"{figures.complete:.1f} s"),
        ("a view of all (median)", f"{statistics.median(figures.later):.2f} s"),
        ("the same view again (median)", f"{statistics.median(figures.again):.2f} s"),
        ("peak memory", f"{figures.peak / 1e6:,.0f} MB"),
        (f"difference from pandas, {_SUBSET:,} records", f"{figures.difference:.1e}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _numbers(count: int, layers: int, seed: int) -> NDArray[np.float64]:
    """Return mean, std, max and zero fraction of layers, [count, layers, 4]."""
    random = np.random.default_rng(seed)
    mean = 1 + 0.1 * random.standard_normal((count, layers))
    std = 0.5 + 0.05 * random.random((count, layers))
    zero = random.integers(10, 40, (count, layers)) / 64
    return np.stack([mean, std, mean + 4 * std, zero], axis=2)


def _rfc3339(milliseconds: int) -> str:
    found = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{found:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03}Z"


def _milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


if __name__ == "__main__":
    sys.exit(main())
