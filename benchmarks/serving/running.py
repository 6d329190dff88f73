"""A server that was started: whether it is ready, what it takes of the machine, how it ends."""

import http.client
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.serving.payload import Payload
from benchmarks.serving.reading import matches

__all__ = ["Launch", "NotRun", "Running", "free_ports", "start"]

_POLL_SECONDS: Final = 0.1
_STOP_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 60.0
_RESUME_SECONDS: Final = 20.0
_SETTLE_SECONDS: Final = 10.0
_SETTLE_STEP_SECONDS: Final = 0.2
# More than any server here takes when nobody asks.
_SETTLED_CORES: Final = 0.3
_LOG_LINES: Final = 15
_PORTS: Final = (12_000, 32_000)


class NotRun(Exception):
    """A server cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Launch:
    """How to start a server.

    Attributes:
        command: its argument vector.
        directory: its working folder.
        environment: variables besides those of this process.
        address: returns `host:port` as soon as it is known.
    """

    command: list[str]
    directory: Path
    environment: Mapping[str, str]
    address: Callable[[], str | None]


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        process: what was started; its children may do the work.
        address: `host:port`.
        log: what it printed.
        start_seconds: from its start to its first right answer.
    """

    process: subprocess.Popen[bytes]
    address: str
    log: Path
    start_seconds: float

    def cpu_seconds(self) -> float:
        """Processor time of all its processes that live, since they started."""
        return sum(_cpu_seconds(one) for one in self._tree())

    def memory_mb(self) -> float:
        """Memory of all its processes in MB (10^6 bytes); pages they share are counted once."""
        return sum(_pss_bytes(one) for one in self._tree()) / 1e6

    def settle(self) -> None:
        """Wait until it has done what a load generator left behind, for some seconds at most.

        wrk drops its connections at the end, and a server may still work on what they asked.
        """
        deadline = time.monotonic() + _SETTLE_SECONDS
        used = float("inf")
        while used > _SETTLED_CORES * _SETTLE_STEP_SECONDS and time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(_SETTLE_STEP_SECONDS)
            used = self.cpu_seconds() - before

    def pause(self) -> None:
        """Take the processor from it, so that its idling cannot slow another server."""
        _signal(self._tree(), signal.SIGSTOP)

    def resume(self, payload: Payload) -> None:
        """Let it go on, and wait until it answers.

        Raises:
            NotRun: it does not.
        """
        _signal(self._tree(), signal.SIGCONT)
        deadline = time.monotonic() + _RESUME_SECONDS
        while wrong := _asked(self.address, payload):
            if time.monotonic() > deadline:
                raise NotRun(f"it did not answer any more after a pause: {wrong}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it and all that it started."""
        _signal(self._tree(), signal.SIGCONT)
        _stop(self.process)

    def _tree(self) -> list[psutil.Process]:
        return _tree(self.process.pid)


def free_ports(count: int) -> list[int]:
    """Find ports of the loopback address that nobody listens on.

    They are below those that the system gives to clients: a client that tries a port until its
    server is there could otherwise be given that very port.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(*_PORTS)  # noqa: S311 (no secret)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


def start(launch: Launch, payload: Payload, log: Path, patience: float) -> Running:
    """Start a server and wait until it answers its first request rightly.

    Args:
        launch: how.
        payload: requests and their answers.
        log: file for what it prints.
        patience: seconds to wait.

    Raises:
        NotRun: it ended, or did not answer rightly in time; with the end of its log.
    """
    began = time.monotonic()
    # Nothing of this process's own Python may leak into another environment.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with log.open("wb") as printed:
        try:
            process = subprocess.Popen(
                launch.command,
                cwd=launch.directory,
                env=inherited | dict(launch.environment),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )
        except OSError as error:
            raise NotRun(f"{launch.command[0]} cannot be started ({error.strerror})") from None
    found = "no answer"
    while time.monotonic() - began < patience:
        if process.poll() is not None:
            raise NotRun(f"it ended with {process.returncode}: {_end(log)}")
        address = launch.address()
        if address is not None:
            found = _asked(address, payload)
            if not found:
                return Running(process, address, log, time.monotonic() - began)
        time.sleep(_POLL_SECONDS)
    _stop(process)
    raise NotRun(f"not ready after {patience:.0f} s ({found}): {_end(log)}")


def _asked(address: str, payload: Payload) -> str:
    """Send the first request; returns what is wrong with the answer, or nothing."""
    connection = http.client.HTTPConnection(address, timeout=_ANSWER_SECONDS)
    try:
        connection.request("POST", payload.path, payload.bodies[0], payload.headers[0])
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    if answer.status == 200 and matches(
        body, payload.expected[0], payload.marker, payload.tolerance
    ):
        return ""
    return f"status {answer.status}, {body[:200]!r}"


def _end(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " / ".join(line.strip() for line in lines[-_LOG_LINES:] if line.strip())[-600:]


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(tree: Sequence[psutil.Process], number: signal.Signals) -> None:
    for one in tree:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(number)


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        taken = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(taken.user + taken.system)


def _pss_bytes(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def _stop(process: subprocess.Popen[bytes]) -> None:
    tree = _tree(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(tree, timeout=_STOP_SECONDS)
    _signal(alive, signal.SIGKILL)
    process.wait(timeout=_STOP_SECONDS)
