"""Kills parts of a server under load, again and again: `scripts/fuzz chaos --minutes 10`.

Starts a server with two of the example models, each with requests of known answers on their way all
the time. Every few seconds a worker, the status service or the gRPC service is killed with SIGKILL.
In the end every request was answered, rightly or with an error that may be tried again; none hung;
the health said of every death in time; and no process has grown, nor holds more open files.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import requests

from tests.conftest import ROOT
from tests.fuzz_http import Connection, agrees, commands, memory
from tests.integration.conftest import Server, export_all, running
from tests.mutated_http import Sent, right

MODELS = ("activation_mlp", "digits")
# What a client may try again; everything else than these and a right answer is a fault.
RETRYABLE = {(503, "worker_died"), (503, "overloaded")}
PATIENCE = 60.0
SHOWN_SECONDS, BACK_SECONDS = 5.0, 60.0
GROWTH, SLACK_MB, SLACK_FILES = 1.15, 24, 20
SERVICES = {b"server.status": "status", b"server.grpc_process": "gRPC"}
LASTING = {b"ModelServer": "java", b"haproxy": "haproxy"}


class Clients:
    """Sends right requests from several threads, and counts what became of them."""

    def __init__(self, url: str, number: int, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.slowest = 0.0
        self._stop, self._lock = threading.Event(), threading.Lock()
        connection, rng = Connection(url), np.random.default_rng(seed)
        self._known: list[tuple[Sent, bytes]] = []
        for name in MODELS:
            model = requests.get(f"{url}/v2/models/{name}", timeout=30).json()
            for sent in right(model, 2, rng):
                answer, body = connection.ask(sent)
                assert answer.status == 200, (sent, body)
                self._known.append((sent, body))
        self._threads = [
            threading.Thread(target=self._run, args=(url, f"{seed} {one}"), daemon=True)
            for one in range(number)
        ]

    def _run(self, url: str, seed: str) -> None:
        rng, connection = random.Random(seed), Connection(url)
        while not self._stop.is_set():
            sent, known = rng.choice(self._known)
            begun = time.monotonic()
            try:
                outcome, problem = self._judge(connection.ask(sent), known)
            except Exception as error:
                connection.close()
                outcome = problem = f"{type(error).__name__}: {error}"
            with self._lock:
                self.outcomes[outcome] += 1
                self.slowest = max(self.slowest, time.monotonic() - begun)
                if problem:
                    self.faults.append(problem)

    @staticmethod
    def _judge(got: tuple | None, known: bytes) -> tuple[str, str | None]:
        if got is None:
            return "closed", "closed without an answer"
        answer, body = got
        if answer.status == 200:
            wrong = None if agrees(answer, body, known) else "a wrong answer"
            return wrong or "right", wrong
        document = json.loads(body)
        code = document.get("code") or document["error"]["code"]
        outcome = f"{answer.status} {code}"
        if (answer.status, code) not in RETRYABLE or not answer.headers["Retry-After"]:
            return outcome, f"{outcome}: {body[:200]!r}"
        return outcome, None

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE + 30)
            if thread.is_alive():
                self.faults.append("a request hangs")


class Killer:
    """Kills one thing after the other, and looks how it is told and mended."""

    def __init__(self, server: Server, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self.faults: list[str] = []
        self.shown: list[float] = []
        self.back: list[float] = []
        self._server, self._rng = server, random.Random(seed)

    def kill(self) -> None:
        """Kill something, and wait until all is well again."""
        what = self._rng.choice([*MODELS, *MODELS, *SERVICES.values()])
        self.kills[what] += 1
        begun = time.monotonic()
        if what in MODELS:
            os.kill(self._server.worker_pids(what)[0], signal.SIGKILL)
            path = f"/v2/models/{what}/ready"
            self.shown += self._until(lambda: self._status(path) == 503, SHOWN_SECONDS, begun, what)
        else:
            os.kill(service(self._server.pid, what), signal.SIGKILL)
        self.back += self._until(self._well, BACK_SECONDS, begun, what)

    def _until(self, done, seconds: float, begun: float, what: str) -> list[float]:
        while not done():
            if time.monotonic() - begun > seconds:
                self.faults.append(f"{what}: not so after {seconds:g} seconds")
                return []
            time.sleep(0.05)
        return [time.monotonic() - begun]

    def _status(self, path: str) -> int:
        with suppress(requests.RequestException):
            return requests.get(f"{self._server.url}{path}", timeout=10).status_code
        return 0

    def _well(self) -> bool:
        with suppress(requests.RequestException, ValueError):
            health = requests.get(f"{self._server.url}/health", timeout=10).json()
            return health.get("status") == "ready"
        return False


def service(pid: int, name: str) -> int:
    """Return the process id of a service of a server."""
    return next(one for one, kind in kinds(pid, SERVICES) if kind == name)


def kinds(pid: int, names: dict[bytes, str]) -> Iterator[tuple[int, str]]:
    """Yield those processes of a server whose command lines hold a word, and what they are."""
    for one, words in commands(pid):
        for word, name in names.items():
            if word in words:
                yield one, name


def open_files(pid: int) -> dict[str, int]:
    """Return how many files those processes have open that are never started again."""
    lasting = [(pid, "supervisor"), *kinds(pid, LASTING)]
    return {name: len(os.listdir(f"/proc/{one}/fd")) for one, name in lasting}


def growth(seen: list[tuple[dict[str, float], dict[str, int]]]) -> list[str]:
    """Name what grew in the second half."""
    (_, _), (memory_half, files_half), (memory_whole, files_whole) = seen
    grown = [
        f"{name} grew from {memory_half[name]:.0f} to {size:.0f} MB"
        for name, size in memory_whole.items()
        if name in memory_half and size > memory_half[name] * GROWTH + SLACK_MB
    ]
    return grown + [
        f"{name} had {files_half[name]} open files, and has {number}"
        for name, number in files_whole.items()
        if number > files_half[name] + SLACK_FILES
    ]


def main() -> int:
    """Run the command line; 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="default: 2")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between; default: 3")
    parser.add_argument("--clients", type=int, default=4, help="default: 4")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitrine-chaos-") as name:
        folder = Path(name)
        export_all([ROOT / "models" / f"{model}.py" for model in MODELS], folder / "store")
        with running(folder / "store", folder, "--front") as server:
            clients = Clients(server.url, options.clients, options.seed)
            killer, seen = Killer(server, options.seed), []
            with clients:
                started = time.monotonic()
                for share in (0.1, 0.5, 1.0):
                    while time.monotonic() - started < 60 * options.minutes * share:
                        time.sleep(options.every)
                        killer.kill()
                    seen.append((memory(server.pid), open_files(server.pid)))
                    print(f"{share:.0%}: {seen[-1]}", file=sys.stderr, flush=True)
    faults = [*clients.faults, *killer.faults, *growth(seen)]
    print(f"seed {options.seed}; killed: {dict(killer.kills)}; requests: {dict(clients.outcomes)}")
    for what, times in (("seen", killer.shown), ("back", killer.back)):
        if times:
            print(f"{what} after {np.median(times):.1f} s (median), {max(times):.1f} s at most")
    print(f"slowest request: {clients.slowest:.1f} s")
    print(f"{len(faults)} faults", *sorted(set(faults))[:20], sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
