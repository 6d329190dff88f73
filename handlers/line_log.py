"""Lines of JSON for a file, each of which costs its request microseconds and nothing else."""

import errno
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from handlers.log_process import WriterProcess
from handlers.log_writer import COUNTERS
from handlers.settings import FileLimits

__all__ = ["Counts", "LineLog", "file_of"]

_CLOSE_SECONDS: Final = 5.0
_REASONS: Final = ("channel_full", "too_large", "writer_dead", "unserialisable", "closed")


def file_of(folder: Path, model: str) -> Path:
    """Return the file of a model's lines, `MODEL.jsonl`."""
    # The point is left to the numbers of files put aside.
    name = re.sub(r"[^\w-]", "_", model, flags=re.ASCII)
    return folder / f"{name}.jsonl"


@dataclass(frozen=True)
class Counts:
    """What became of the lines so far.

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


class LineLog:
    """Hands lines to a process that writes them, so that a worker never waits for a disk.

    A line that was sent is outside the worker: TorchServe may kill it right afterwards, and the
    line is still written, whole. It is lost only if the writer is killed together with the
    worker, or if it is dropped and counted.

    Args:
        path: the file; all workers of a model write to it. With None nothing is started and
            nothing is written.
        limits: when the file is put aside.

    Raises:
        OSError: the writer cannot be started.
    """

    def __init__(self, path: Path | None, limits: FileLimits) -> None:
        self._guard = threading.Lock()
        self._open = False
        self._writer: WriterProcess | None = None
        self._sent = 0
        self._dropped = dict.fromkeys(_REASONS, 0)
        if path is not None:
            self._writer = WriterProcess(path, limits)
            self._open = True

    def put(self, make: Callable[[], bytes]) -> None:
        """Send a line to the writer, or drop and count it. Never waits, never raises.

        Args:
            make: returns the line with its newline, the only one in it.
        """
        try:
            line = make()
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
        """How many bytes the channel holds, and more than the longest line has; 0 when off."""
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
