"""Hostile HTTP through the front, from many clients: `scripts/fuzz http --cases 100000`.

Starts a server with the example models. Every fourth request is a right one, whose answer is known;
the others were changed. In the end every right answer was right, every refusal documented, no
worker was started again, and no process has grown.
"""

import argparse
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import requests

from tests.conftest import ROOT
from tests.errors import told
from tests.integration.conftest import EXAMPLES, export_all, running
from tests.mutated_http import Sent, mutated, pictures, right

PAGES = [ROOT / "docs" / "endpoints.md", ROOT / "docs" / "requests.md"]
CODES = {code for page in PAGES for code in re.findall(r"`([a-z_]+)`", page.read_text())}
STATUSES = {200, 400, 404, 405, 406, 408, 413, 415, 431, 503}
# Memory may settle until half of the requests are through.
GROWTH, SLACK_MB = 1.1, 16


class Connection:
    """A kept connection that is made anew where the server closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address, self._socket = (parts.hostname, parts.port), None

    def ask(self, sent: Sent) -> tuple[HTTPResponse, bytes] | None:
        """Return the answer and its body; None where the server closed without one."""
        kept = self._socket is not None and not sent.lie
        answer = self._try(sent)
        return self._try(sent) if answer is None and kept else answer

    def _try(self, sent: Sent) -> tuple[HTTPResponse, bytes] | None:
        if sent.lie or self._socket is None:
            self.close()
            self._socket = socket.create_connection(self._address, timeout=60)
        keep = False
        try:
            # An answer may have come before the end of the body.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(sent.wire())
            if sent.lie:
                self._socket.settimeout(0.1)
            answer = HTTPResponse(self._socket, method=sent.method)
            answer.begin()
            body = answer.read()
            keep = not (answer.will_close or sent.lie)
            return answer, body
        except (HTTPException, ConnectionError):
            return None
        except TimeoutError:
            if sent.lie:
                return None
            raise
        finally:
            if not keep:
                self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def same(one: object, other: object) -> bool:
    """Whether two JSON documents agree; numbers to what a row's place in a batch may change."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-5, atol=1e-7))
    return one == other


def agrees(answer: HTTPResponse, body: bytes, known: bytes) -> bool:
    """Whether a right request's answer is the known one."""
    if answer.status != 200:
        return False
    if body == known:
        return True
    if answer.headers["content-type"] == "application/json":
        return same(json.loads(body), json.loads(known))
    start = int(answer.headers.get("Inference-Header-Content-Length") or 0)
    if known.startswith(b"\x93NUMPY"):
        start = 128  # Where a file with a short header has its values.
    if len(body) != len(known) or body[:start] != known[:start]:
        return False
    mine, its = (np.frombuffer(one[start:], "<f4") for one in (body, known))
    return bool(np.allclose(mine, its, rtol=1e-5, atol=1e-7))


def fault(sent: Sent, answer: HTTPResponse, body: bytes) -> str | None:
    """Say what is wrong with the answer to a changed request, if anything is."""
    status, media = answer.status, answer.headers.get("content-type", "")
    if status not in STATUSES:
        return f"status {status}"
    if sent.method == "HEAD":
        return None
    if status == 200:
        if media == "application/json" and answer.headers.get("content-encoding") != "gzip":
            length = answer.headers.get("Inference-Header-Content-Length")
            json.loads(body[: int(length)] if length else body)
        return None
    if media.startswith("text/html") and status == 400:
        return None if unreadable(sent) else "an error in HTML"
    if media != "application/json" or not body.isascii():
        return f"an error as {media!r}"
    document = json.loads(body)
    try:
        code = told(sent.path, document)["code"]
    except (AssertionError, KeyError):
        return "an error of another form"
    return None if code in CODES else f"undocumented code {code!r}"


def unreadable(sent: Sent) -> bool:
    """Whether a request is no HTTP at all, which HAProxy says in its own words."""
    hosts = [name for name, _ in sent.headers if name.lower() == "host"]
    disagree = len(hosts) > 1 or (hosts and sent.path.startswith("http"))
    odd = any(byte < 32 and byte != 9 for _, value in sent.headers for byte in value)
    target = sent.path[0] not in "/*h" or "#" in sent.path or sent.method == "CONNECT"
    return bool(disagree or odd or target or sent.lie) or len(sent.wire()) > 31_000


class Run:
    """What the clients share: known answers, counts and faults."""

    def __init__(self, url: str, cases: int, seed: int) -> None:
        self.url, self.cases, self.seed = url, cases, seed
        self.done, self.checked, self.lock = 0, 0, threading.Lock()
        self.statuses: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.faults: list[str] = []
        self.known: list[tuple[Sent, bytes]] = []
        rng, connection = np.random.default_rng(seed), Connection(url)
        forms = pictures()
        for name in EXAMPLES:
            model = requests.get(f"{url}/v2/models/{name}", timeout=30).json()
            forms += [one for rows in (1, 3) for one in right(model, rows, rng)]
        for sent in forms:
            answer, body = connection.ask(sent)
            assert answer.status == 200, (sent, body)
            self.known.append((sent, body))

    def client(self, number: int) -> None:
        """Send until all are sent."""
        rng, connection = random.Random(f"{self.seed} {number}"), Connection(self.url)
        while True:
            with self.lock:
                if self.done >= self.cases:
                    return
                self.done += 1
                turn = self.done
            sent, known = rng.choice(self.known)
            try:
                if turn % 4 == 0:
                    self._right(connection, sent, known, f"{self.seed}-{turn}")
                else:
                    sent = mutated(sent, rng)
                    self._wrong(connection, sent)
            except Exception as error:
                connection.close()
                self._report(f"{type(error).__name__}: {error}", sent, b"")

    def _right(self, connection: Connection, sent: Sent, known: bytes, mark: str) -> None:
        headers = [*sent.headers, ("X-Correlation-Id", mark.encode())]
        got = connection.ask(Sent(sent.path, sent.body, headers))
        if got is None:
            self._report("no answer to a right request", sent, b"")
        elif not agrees(*got, known) or got[0].headers["x-correlation-id"] != mark:
            self._report("a neighbour's answer is wrong", sent, got[1])
        else:
            with self.lock:
                self.checked += 1
                self.statuses["right, and as known"] += 1

    def _wrong(self, connection: Connection, sent: Sent) -> None:
        got = connection.ask(sent)
        what = "closed, or waited for more" if got is None else str(got[0].status)
        if got is None:
            problem = None if unreadable(sent) else "no answer"
        else:
            problem = fault(sent, *got)
            if problem is None and got[0].status >= 400 and b'"code"' in got[1]:
                what += " " + told(sent.path, json.loads(got[1]))["code"]
        with self.lock:
            self.statuses[what] += 1
        if problem:
            self._report(problem, sent, b"" if got is None else got[1])

    def _report(self, problem: str, sent: Sent, body: bytes) -> None:
        with self.lock:
            self.problems[problem] += 1
            if self.problems[problem] <= 3:
                self.faults.append(f"{problem}\n  {sent.wire()[:600]!r}\n  {body[:300]!r}")


def descendants(pid: int) -> list[int]:
    """Return the process ids of a process and of all below it."""
    found = [pid]
    # One that TorchServe ran for a moment may be gone.
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += descendants(int(child))
    return found


def commands(pid: int) -> Iterator[tuple[int, bytes]]:
    """Yield the processes below a process, and itself, with their command lines."""
    for one in descendants(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            yield one, Path(f"/proc/{one}/cmdline").read_bytes()


def memory(pid: int) -> dict[str, float]:
    """Return the resident megabytes of a server's processes, by what they are."""
    found: Counter[str] = Counter()
    for one, words in commands(pid):
        names = {b"ModelServer": "java", b"haproxy": "haproxy", b"server.status": "status",
                 b"model_service_worker": "worker", b"server.grpc": "grpc"}  # fmt: skip
        kind = next((name for word, name in names.items() if word in words), "other")
        number = sum(name.startswith(kind) for name in found) + 1
        with suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{one}/status").read_text()
            # One that has ended, and was not waited for, has none.
            if resident := re.search(r"VmRSS:\s+(\d+)", status):
                found[f"{kind} {number}"] = int(resident[1]) / 1024
    return dict(found)


def main() -> int:
    """Run the command line; 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz http", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="default: 100000")
    parser.add_argument("--clients", type=int, default=8, help="default: 8")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitrine-fuzz-") as name:
        folder = Path(name)
        export_all([ROOT / "models" / f"{model}.py" for model in EXAMPLES], folder / "store")
        with running(folder / "store", folder, "--front") as server:
            run = Run(server.url, options.cases, options.seed)
            pids = {model: server.worker_pids(model) for model in EXAMPLES}
            grown = observe(run, options.clients, server.pid)
            if pids != {model: server.worker_pids(model) for model in EXAMPLES}:
                run.faults.append("a worker was started again")
            log = (folder / "server.log").read_text(errors="replace")
    run.faults += [f"{name} grew" for name in grown]
    run.faults += ["a traceback in the log:\n" + log[-3000:]] * ("Traceback" in log)
    print(f"{run.done:,} requests, seed {run.seed}; {run.checked:,} right ones answered as known")
    for what, count in run.statuses.most_common():
        print(f"{count:9,}  {what}")
    print(f"{len(run.faults)} faults shown of these: {dict(run.problems)}", *run.faults, sep="\n")
    return bool(run.faults)


def observe(run: Run, clients: int, pid: int) -> list[str]:
    """Send all there is, look at the memory on the way, and name what grew in the second half."""
    threads = [
        threading.Thread(target=run.client, args=(number,), daemon=True)
        for number in range(clients)
    ]
    started, seen = time.monotonic(), []
    for thread in threads:
        thread.start()
    for share in (0.1, 0.5, 1.0):
        while run.done < share * run.cases:
            time.sleep(0.2)
        if share == 1.0:
            for thread in threads:
                thread.join(timeout=90)
        seen.append(memory(pid))
        each = ", ".join(f"{name} {size:.0f}" for name, size in seen[-1].items())
        rate = run.done / (time.monotonic() - started)
        print(f"{share:.0%}, {rate:.0f} requests/s, MB: {each}", file=sys.stderr, flush=True)
    _, half, whole = seen
    return [name for name, size in whole.items() if size > half.get(name, 0) * GROWTH + SLACK_MB]


if __name__ == "__main__":
    sys.exit(main())
