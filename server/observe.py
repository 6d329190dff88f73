"""The process that logs and counts requests: `python -m server.observe FILE PIPE [OUTPUT]`.

It reads what the front writes into a pipe, a line a request, and is in nobody's way: the front
drops, and counts, a line that does not fit.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from server.exposition import Family, counter, gauge
from server.front_state import front_state
from server.metrics import metrics_server
from server.model_metrics import ModelMetrics
from server.request_log import RequestLog
from server.request_metrics import RequestMetrics
from server.request_record import Reader, Unreadable
from server.settings import Settings
from server.torchserve_metrics import torchserve_metrics
from server.tracing import Tracing, tracing
from server.watch import Watch

__all__ = ["Observer", "main"]

_CHUNK: Final = 1 << 20
# Lines are read together: waking up for each would cost more than reading it.
_PAUSE_SECONDS: Final = 0.05


class Observer:
    """Logs and counts what the front's lines say.

    Args:
        reader: Reads them.
        log: Where they are logged, if anywhere.
        traces: Where spans go, if anywhere.
    """

    def __init__(
        self, reader: Reader, log: RequestLog | None, traces: Tracing | None = None
    ) -> None:
        self._reader, self._log, self._traces = reader, log, traces
        self._metrics = RequestMetrics()
        self._unreadable = 0
        self._lock = threading.Lock()

    def take(self, lines: Sequence[bytes]) -> None:
        """Take lines in; what is no request's is passed over."""
        records: list[dict[str, Any]] = []
        with self._lock:
            for line in lines:
                try:
                    record = self._reader.read(line)
                except Unreadable:
                    # HAProxy also says when it starts and stops.
                    self._unreadable += line.startswith(b"[")
                    continue
                self._metrics.count(record)
                records.append(record)
        if self._traces is not None:
            self._traces.give(records)
        if self._log is not None and records:
            newline = orjson.OPT_APPEND_NEWLINE
            self._log.write([orjson.dumps(record, option=newline) for record in records])

    def families(self) -> Iterator[Family]:
        """What Prometheus is told."""
        with self._lock:
            yield from list(self._metrics.families())
        yield counter(
            "vitrine_request_log_unreadable_lines_total",
            "Lines of the front that could not be read: neither logged nor counted.",
            (),
            {(): self._unreadable},
        )
        yield counter(
            "vitrine_request_log_dropped_lines_total",
            "Lines counted but not logged, because they could not be written fast enough.",
            (),
            {(): self._log.dropped if self._log is not None else 0},
        )
        if self._traces is not None:
            yield counter(
                "vitrine_trace_requests_total",
                "Sampled requests, by whether they were handed on to be exported.",
                ("outcome",),
                {("handed_on",): self._traces.given, ("dropped",): self._traces.dropped},
            )


def front_families(admin: Path) -> Iterator[Family]:
    """What HAProxy says of itself.

    Raises:
        Refused, ValueError: It does not answer as expected.
    """
    state = front_state(admin)
    yield gauge(
        "vitrine_requests_in_flight",
        "Requests that wait for TorchServe's answer.",
        (),
        {(): state.in_flight},
    )
    yield counter(
        "vitrine_request_uncounted_total",
        "Requests neither counted nor logged, because the pipe was full.",
        (),
        {(): state.dropped_lines},
    )


def follow(pipe: int, stop: int, observer: Observer) -> None:
    """Read lines until told to stop, and then those that are left.

    Args:
        pipe: Where they come from.
        stop: Becomes readable when it is time to stop.
        observer: Takes them.
    """
    rest = b""
    os.set_blocking(pipe, False)
    watched = [pipe, stop]
    stopping = False
    while not stopping:
        stopping = stop in select.select(watched, [], [])[0]
        try:
            chunk = os.read(pipe, _CHUNK)
        except BlockingIOError:
            continue
        if not chunk:
            # The front is gone; that is the supervisor's business.
            watched = [stop]
            continue
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        observer.take(lines)
        if not stopping:
            time.sleep(_PAUSE_SECONDS)


def main(settings: Settings, pipe: int, output: int | None) -> None:
    """Log and count until told to end."""
    catalog = settings.catalog()
    log = None
    if settings.request_log != "off":
        log = RequestLog(output if output is not None else Path(settings.request_log))
    reader = Reader({name: catalog.versions(name) for name in catalog.names})
    traces = tracing(os.environ)
    observer = Observer(reader, log, traces)
    models = ModelMetrics(catalog.names, Watch(Path(settings.condition)))
    host, _, port = settings.metrics.rpartition(":")
    server = metrics_server(
        host,
        int(port),
        {
            "requests": observer.families,
            "front": lambda: front_families(Path(settings.admin)),
            "models": models.families,
            "torchserve": lambda: torchserve_metrics(settings.torchserve_metrics),
        },
    )
    stop, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    follow(pipe, stop, observer)
    server.server_close()
    if traces is not None:
        traces.close()
    if log is not None:
        log.close()


if __name__ == "__main__":
    main(
        Settings.read(Path(sys.argv[1])),
        int(sys.argv[2]),
        int(sys.argv[3]) if len(sys.argv) > 3 else None,
    )
