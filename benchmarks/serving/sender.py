"""Sends requests at scheduled times: `python -m benchmarks.serving.sender`.

A process of its own, so that nothing else runs between its requests, and a loop of its own over
`select`, whose timeouts are in microseconds where asyncio's are in milliseconds. Times of requests
are those of a Poisson process with a fixed seed, as many independent clients make one. Each request
takes a connection that is free, or waits for one; its latency counts from its scheduled time. It
writes one JSON object to standard output.
"""

import argparse
import gc
import json
import resource
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.serving.payload import Payload, read
from benchmarks.serving.reading import matches

__all__ = ["Sender", "Tally", "split"]

_SEED: Final = 0
_BUFFER_BYTES: Final = 1 << 18
_LEAST_PATIENCE_SECONDS: Final = 5.0


@dataclass
class Tally:
    """What came back.

    Attributes:
        latency_ms: from the scheduled time to the answer, one for each answer.
        lag_ms: from the scheduled time to sending, for each request that found a free connection.
        right, wrong, refused, broken, sample: as in `figures.Opened`.
    """

    latency_ms: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    right: int = 0
    wrong: int = 0
    refused: int = 0
    broken: int = 0
    sample: str = ""


class Connection:
    """One connection of HTTP/1.1, with one request at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect.

        Raises:
            OSError: nobody listens.
        """
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = 0
        self.scheduled = 0.0
        self._received = bytearray()

    def fileno(self) -> int:
        """For `select`."""
        return self.socket.fileno()

    def send(self, request: bytes, number: int, scheduled: float) -> None:
        """Send a request."""
        self.number, self.scheduled = number, scheduled
        self.socket.sendall(request)

    def receive(self) -> tuple[int, bytes] | None:
        """Take what has arrived; returns status and body once they are whole.

        Raises:
            OSError: the connection ended.
        """
        arrived = self.socket.recv(_BUFFER_BYTES)
        if not arrived:
            raise ConnectionResetError("the server closed the connection")
        self._received += arrived
        whole = split(self._received)
        if whole is not None:
            self._received.clear()
        return whole


def split(received: bytearray) -> tuple[int, bytes] | None:
    """Return status and body of an answer, or None while it is not whole.

    Raises:
        ValueError: it has no Content-Length.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end]).lower()
    _, named, rest = head.partition(b"\r\ncontent-length:")
    if not named:
        raise ValueError("the answer has no Content-Length")
    body = bytes(received[end + 4 :])
    if len(body) < int(rest.split(b"\r\n", 1)[0]):
        return None
    return int(head.split(b" ", 2)[1]), body


class Sender:
    """Sends the requests of a payload, in turn, over a number of connections."""

    def __init__(self, payload: Payload, host: str, port: int, connections: int) -> None:
        """Connect, and build the bytes of all requests."""
        self.tally = Tally()
        self._payload = payload
        self._requests = [
            _request(payload, f"{host}:{port}", number) for number in range(len(payload.bodies))
        ]
        self._address = (host, port)
        self._free = deque(Connection(self._address) for _ in range(connections))
        self._busy: set[Connection] = set()
        self._waiting: deque[tuple[int, float]] = deque()

    def run(self, rate: float, seconds: float) -> None:
        """Send for a time, then wait for what is under way: as long again, or a few seconds.

        Args:
            rate: mean requests per second.
            seconds: how long.
        """
        count = max(1, round(rate * seconds))
        offsets = np.cumsum(np.random.default_rng(_SEED).exponential(1 / rate, count)).tolist()
        start = time.perf_counter()
        for index, offset in enumerate(offsets):
            scheduled = start + offset
            self._answer_until(scheduled)
            self._schedule(index % len(self._requests), scheduled)
        self._answer_until(
            time.perf_counter() + max(seconds, _LEAST_PATIENCE_SECONDS), until_done=True
        )
        self.tally.broken += len(self._busy) + len(self._waiting)

    def close(self) -> None:
        """Close all connections."""
        for connection in [*self._free, *self._busy]:
            connection.socket.close()

    def _answer_until(self, deadline: float, *, until_done: bool = False) -> None:
        while (left := deadline - time.perf_counter()) > 0:
            if until_done and not self._busy:
                return
            ready, _, _ = select.select(list(self._busy), [], [], left)
            for connection in ready:
                self._take(connection)

    def _schedule(self, number: int, scheduled: float) -> None:
        if self._free:
            self.tally.lag_ms.append((time.perf_counter() - scheduled) * 1000)
            self._send(self._free.popleft(), number, scheduled)
        else:
            self._waiting.append((number, scheduled))

    def _send(self, connection: Connection, number: int, scheduled: float) -> None:
        self._busy.add(connection)
        try:
            connection.send(self._requests[number], number, scheduled)
        except OSError:
            self._renew(connection)

    def _take(self, connection: Connection) -> None:
        try:
            whole = connection.receive()
        except OSError:
            self._renew(connection)
            return
        if whole is None:
            return
        self._count(connection, *whole)
        self._release(connection)

    def _count(self, connection: Connection, status: int, body: bytes) -> None:
        tally, payload = self.tally, self._payload
        tally.latency_ms.append((time.perf_counter() - connection.scheduled) * 1000)
        expected = payload.expected[connection.number]
        if status == 200 and matches(body, expected, payload.marker, payload.tolerance):
            tally.right += 1
            return
        tally.wrong += status == 200
        tally.refused += status != 200
        tally.sample = f"{status} {body[:200].decode('utf-8', 'replace')}"

    def _renew(self, connection: Connection) -> None:
        self.tally.broken += 1
        connection.socket.close()
        self._busy.discard(connection)
        self._release(Connection(self._address))

    def _release(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if self._waiting:
            self._send(connection, *self._waiting.popleft())
        else:
            self._free.append(connection)


def _request(payload: Payload, host: str, number: int) -> bytes:
    body, headers = payload.bodies[number], payload.headers[number]
    lines = [f"POST {payload.path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.sender")
    parser.add_argument("payload", type=Path, help="folder of the requests")
    parser.add_argument("address", help="host:port")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True)
    given = parser.parse_args()
    host, _, port = given.address.rpartition(":")
    sender = Sender(read(given.payload), host, int(port), given.connections)
    gc.freeze()
    began, used = time.perf_counter(), _cpu_seconds()
    sender.run(given.rate, given.seconds)
    times = {
        "seconds": time.perf_counter() - began,
        "client_seconds": _cpu_seconds() - used,
    }
    sender.close()
    print(json.dumps(vars(sender.tally) | times))


def _cpu_seconds() -> float:
    taken = resource.getrusage(resource.RUSAGE_SELF)
    return taken.ru_utime + taken.ru_stime


if __name__ == "__main__":
    main()
