"""The activation log: one JSON line for a request, which costs it microseconds and nothing else."""

import errno
import re
import threading
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from formats.activation import ActivationRecord
from handlers.jsontext import dumps
from handlers.log_process import WriterProcess
from handlers.log_settings import LogSettings
from handlers.log_writer import COUNTERS

__all__ = ["ActivationLog", "Counts"]

_CLOSE_SECONDS: Final = 5.0
_REASONS: Final = ("channel_full", "too_large", "writer_dead", "unserialisable", "closed")


@dataclass(frozen=True)
class Counts:
    """What became of the records so far.

    Attributes:
        sent: handed to the writer.
        written: in the file.
        dropped: lost, by reason. By the worker: "channel_full", "too_large", "writer_dead",
            "unserialisable", "closed"; by the writer: "disk_full", "read_only",
            "folder_missing", "io_error".
    """

    sent: int
    written: int
    dropped: dict[str, int]

    @property
    def total_dropped(self) -> int:
        """All that were lost."""
        return sum(self.dropped.values())


class ActivationLog:
    """Hands records to a process that writes them, so that a worker never waits for a disk.

    A record that was sent is outside the worker: TorchServe may kill it right afterwards, and the
    record is still written, whole. It is lost only if the writer is killed together with the
    worker, or if it is dropped and counted.

    Args:
        settings: with mode "off" nothing is started and nothing is written.
        model: names the file, `MODEL.jsonl`. All workers of the model write to it.

    Raises:
        OSError: the writer cannot be started.
    """

    def __init__(self, settings: LogSettings, model: str) -> None:
        self._guard = threading.Lock()
        self._open = False
        self._writer: WriterProcess | None = None
        self._sent = 0
        self._dropped = dict.fromkeys(_REASONS, 0)
        if settings.mode != "off":
            assert settings.folder is not None
            # The point is left to the numbers of files put aside.
            name = re.sub(r"[^\w-]", "_", model, flags=re.ASCII)
            self._writer = WriterProcess(settings.folder / f"{name}.jsonl", settings)
            self._open = True

    def write(self, record: ActivationRecord) -> None:
        """Send a record to the writer, or drop and count it. Never waits, never raises."""
        try:
            line = _line(record)
        except Exception:
            line = None
        with self._guard:
            reason = "unserialisable" if line is None else self._send(line)
            if reason is None:
                self._sent += 1
            else:
                self._dropped[reason] += 1

    def counts(self) -> Counts:
        """Count what was sent, written and dropped so far, without a system call."""
        with self._guard:
            counts = dict.fromkeys(COUNTERS, 0) if self._writer is None else self._writer.counts()
            return Counts(self._sent, counts.pop("written"), self._dropped | counts)

    @property
    def writer_pid(self) -> int | None:
        """The writer's process id; None while there is none."""
        return self._writer.pid if self._writer is not None else None

    @property
    def capacity(self) -> int:
        """How many bytes the channel holds, and more than the longest record has; 0 when off."""
        return self._writer.capacity if self._writer is not None else 0

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Let the writer write what was sent, and end it; leaves no process and no file open.

        Args:
            seconds: how long that may take; then the writer is killed, and what it did not
                write is counted as "writer_dead".
        """
        with self._guard:
            if not self._open:
                return
            self._open = False
        assert self._writer is not None
        self._writer.close(seconds)
        self._dropped["writer_dead"] += max(0, self._sent - sum(self._writer.counts().values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, line: bytes) -> str | None:
        """Send a line; return why it was dropped, if it was."""
        if not self._open or self._writer is None:
            return "closed"
        try:
            self._writer.channel.send(line)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return "too_large"
            return "channel_full" if self._writer.pid is not None else "writer_dead"
        return None


def _line(record: ActivationRecord) -> bytes:
    # JSON escapes newlines in a client's text; the one at the end is the only one.
    try:
        return dumps(record.to_json()) + b"\n"
    except (TypeError, ValueError):
        # A client's text may hold lone surrogates, which have no UTF-8.
        record = replace(
            record,
            request_id=_encodable(record.request_id),
            traceparent=record.traceparent and _encodable(record.traceparent),
            correlation_id=record.correlation_id and _encodable(record.correlation_id),
        )
        return dumps(record.to_json()) + b"\n"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
