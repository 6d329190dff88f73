"""What an image costs on the wire, form by form: `scripts/benchmark binary`.

Exports a model that does next to nothing, serves it, and sends one float32 image of 3 × 224 × 224
in every form, one request at a time. Each round sends every form once, in an order of its own;
figures are medians over rounds, and ratios are taken within a round. Bodies are made before
anything is timed. A second table times what the worker does with a body before the model runs.
"""

import argparse
import http.client
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

from benchmarks.activations import Spread
from export.definition import from_model_file
from export.pipeline import export_model
from formats.signature import Signature, TensorSpec
from handlers.asked import read
from handlers.coding import MAX_REQUEST_BYTES
from handlers.message import Request

__all__ = ["FORMS", "bodies", "main", "parse_times", "render", "round_trips"]

FORMS: Final = ("JSON", "protocol, JSON", "protocol, binary", ".npy", "raw")
"""What is sent, in the order of the table; ratios are of the first."""

_ROOT: Final = Path(__file__).resolve().parent.parent
_MODEL: Final = _ROOT / "benchmarks" / "model_files" / "channel_means.py"
_PATH: Final = "/predictions/channel_means"
_START_SECONDS: Final = 240.0
_TIMEOUT: Final = 30.0

Times = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Sent:
    """A body and the headers that say what it is."""

    body: bytes
    headers: Mapping[str, str]


def bodies(image: "np.ndarray[Any, Any]") -> dict[str, Sent]:
    """Return requests for the means of images, float32 [rows, 3, 224, 224], by form."""
    entry = {"name": "image", "shape": list(image.shape), "datatype": "FP32"}
    values = image.ravel().tolist()
    size = {"parameters": {"binary_data_size": image.nbytes}}
    start = json.dumps({"inputs": [{**entry, **size}]}).encode()
    file = io.BytesIO()
    np.save(file, image)
    as_json = {"Content-Type": "application/json"}
    as_bytes = {"Content-Type": "application/octet-stream"}
    length = {"Inference-Header-Content-Length": str(len(start))}
    document = {"inputs": [{**entry, "data": values}]}
    return {
        "JSON": Sent(json.dumps({"inputs": image.tolist()}).encode(), as_json),
        "protocol, JSON": Sent(json.dumps(document).encode(), as_json),
        "protocol, binary": Sent(start + image.tobytes(), {**as_bytes, **length}),
        ".npy": Sent(file.getvalue(), {"Content-Type": "application/x-npy"}),
        "raw": Sent(image.tobytes(), as_bytes),
    }


@contextmanager
def _served() -> Iterator[str]:
    """Export the model and serve it; yields the address of the inference API."""
    with tempfile.TemporaryDirectory(prefix="vitrine-benchmark-") as folder:
        store, state = Path(folder, "store"), Path(folder, "state.json")
        store.mkdir()
        export_model(from_model_file(_MODEL), store)
        command = [sys.executable, "-m", "server", "--port", "0", "--model-store", str(store)]
        with Path(folder, "server.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--state", str(state)], cwd=_ROOT, stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not state.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(Path(folder, "server.log").read_text(encoding="utf-8"))
                time.sleep(0.1)
            yield json.loads(state.read_text(encoding="utf-8"))["inference"]
        finally:
            process.terminate()
            process.wait(timeout=60)


def _post(connection: http.client.HTTPConnection, sent: Sent) -> float:
    """Send a request and return the milliseconds until its answer was there."""
    started = time.perf_counter()
    connection.request("POST", _PATH, sent.body, dict(sent.headers))
    answer = connection.getresponse()
    body = answer.read()
    taken = (time.perf_counter() - started) * 1000
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}: {body[:500]!r}")
    return taken


def round_trips(url: str, sent: Mapping[str, Sent], rounds: int) -> Times:
    """Time requests on one kept connection.

    Args:
        url: of the inference API.
        sent: requests by form.
        rounds: how often each is sent, after a tenth as many that do not count.

    Returns:
        Milliseconds by form, one for each round.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=_TIMEOUT
    )
    times: dict[str, list[float]] = {form: [] for form in sent}
    order = list(sent)
    shuffle = random.Random(0).shuffle  # noqa: S311 (an order, not a secret)
    unmeasured = max(1, rounds // 10)
    for number in range(-unmeasured, rounds):
        shuffle(order)
        for form in order:
            taken = _post(connection, sent[form])
            if number >= 0:
                times[form].append(taken)
    connection.close()
    return times


def parse_times(sent: Mapping[str, Sent], rounds: int) -> Times:
    """Time what the worker does to have an array: milliseconds by form, one for each round."""
    image = (TensorSpec("image", "float32", (-1, 3, 224, 224)),)
    signature = Signature("m", "1.0", "", image, (TensorSpec("means", "float32", (-1, 3)),), True)
    times: dict[str, list[float]] = {form: [] for form in sent}
    for _ in range(rounds):
        for form, one in sent.items():
            headers = {name.lower(): value for name, value in one.headers.items()}
            request = Request(bytearray(one.body), headers)
            started = time.perf_counter()
            read(request, signature, (), MAX_REQUEST_BYTES)
            times[form].append((time.perf_counter() - started) * 1000)
    return times


def render(sent: Mapping[str, Sent], trips: Times, parsed: Times) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| form | bytes | over HTTP, ms | JSON takes this, × | reading alone, ms |",
        "|---|---|---|---|---|",
    ]
    first = np.array(trips[FORMS[0]])
    for form in FORMS:
        own = np.array(trips[form])
        ratio, whole, reading = (
            Spread.of(list(values)) for values in (first / own, own, parsed[form])
        )
        lines.append(
            f"| {form} | {len(sent[form].body):,} | {_shown(whole, 2)} | {_shown(ratio, 1)} "
            f"| {_shown(reading, 3)} |"
        )
    return "\n".join(lines)


def _shown(spread: Spread, digits: int) -> str:
    middle, low, high = (f"{x:.{digits}f}" for x in (spread.median, spread.low, spread.high))
    return f"{middle} [{low}, {high}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark binary",
        description="Measure an image in every form of a request, over HTTP.",
    )
    parser.add_argument("--rounds", type=int, default=100, help="default: 100")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype("<f4")
    sent = bodies(image)
    print("exporting and starting the server", file=sys.stderr, flush=True)
    load = os.getloadavg()[0]
    with _served() as url:
        print("measuring", file=sys.stderr, flush=True)
        trips = round_trips(url, sent, options.rounds)
    cores = len(os.sched_getaffinity(0))
    print(
        f"{cores} cores, load {load:.2f} at the start; {options.rounds} rounds; medians "
        "[quartiles]; ratios are taken within a round.\n"
    )
    print(render(sent, trips, parse_times(sent, options.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
