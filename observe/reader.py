"""Keeps an index up to date with the files of a log, in a thread of its own."""

import gc
import multiprocessing
import signal
import threading
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import duckdb

from formats.document import FormatError
from observe.index import Index
from observe.lines import Columns, Moved, read_part
from observe.log_files import LogFiles, Part

__all__ = ["Reader", "State"]

_PROCESSES: Final = 2
_AHEAD: Final = 4
_TRIES: Final = 10
_PAUSE: Final = 0.01
_FEW_BYTES: Final = 4 << 20
"""Less than this is decoded here: a second process would take longer to start."""


@dataclass(frozen=True)
class State:
    """How far a log has been read.

    Attributes:
        records: in the index.
        skipped: lines that were no record, by reason.
        truncated: how often a file was found shorter than what had been read of it.
        read_bytes: of the files, so far.
        found_bytes: of the files, in whole lines.
        problem: why the files cannot be read now, or None.
        generation: another number whenever something was added.
    """

    records: int
    skipped: dict[str, int]
    truncated: int
    read_bytes: int
    found_bytes: int
    problem: str | None
    generation: int

    @property
    def complete(self) -> bool:
        """Whether all that was found is in the index."""
        return self.read_bytes >= self.found_bytes


class Reader:
    """Reads a log's files into an index, the newest records first, and goes on as they grow.

    Args:
        path: `MODEL.jsonl`, or the folder it is in.
        index: to add to.

    Raises:
        FormatError: there is no log at `path`.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self._files = LogFiles(path)
        self._index = index
        self._found = 0
        self._read = 0
        self._problem: str | None = None
        self._stop = threading.Event()
        self._caught_up = threading.Event()
        self._thread: threading.Thread | None = None
        self._first = self._files.poll()
        self._problem = self._files.refused
        self._found = sum(part.end - part.start for part in self._first)

    def state(self) -> State:
        """Return how far it is."""
        return State(
            len(self._index),
            dict(self._index.skipped),
            self._files.truncated,
            self._read,
            self._found,
            self._problem,
            self._index.generation,
        )

    def read_all(self) -> State:
        """Read what there is now, and return when it is in the index."""
        parts, self._first = self._first, []
        self._take(parts)
        self._take(self._poll())
        return self.state()

    def start(self, every: float = 0.5) -> None:
        """Read from now on, in a thread.

        Args:
            every: seconds between two looks at the files.
        """
        self._thread = threading.Thread(target=self._run, args=(every,), daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until all that was found at first is read, or for so many seconds."""
        self._caught_up.wait(seconds)

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, every: float) -> None:
        parts, self._first = self._first, []
        self._take(parts)
        self._caught_up.set()
        while not self._stop.wait(every):
            self._take(self._poll())

    def _poll(self) -> list[Part]:
        try:
            parts = self._files.poll()
            self._problem = self._files.refused
        except (FormatError, OSError) as error:
            self._problem = str(error)
            return []
        self._found += sum(part.end - part.start for part in parts)
        return parts

    def _take(self, parts: list[Part]) -> None:
        if sum(part.end - part.start for part in parts) <= _FEW_BYTES:
            for part in parts:
                self._add(part, None)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(_PROCESSES, mp_context=context, initializer=_prepare) as pool:
            waiting: deque[tuple[Part, Future[Columns]]] = deque()
            for part in parts:
                waiting.append((part, pool.submit(read_part, part)))
                if len(waiting) >= _AHEAD:
                    self._add(*waiting.popleft())
                if self._stop.is_set():
                    break
            while waiting:
                self._add(*waiting.popleft())

    def _add(self, part: Part, future: Future[Columns] | None) -> None:
        try:
            columns = read_part(part) if future is None else future.result()
        except Moved:
            columns = self._elsewhere(part)
        except (OSError, BrokenProcessPool) as error:
            self._problem = f"{part.path}: {error}"
            columns = Columns(skipped={"unreadable": 1})
        try:
            self._index.add(columns)
        except duckdb.Error as error:
            # No room on the disk, say: go on with what comes next, which may fit.
            self._problem = f"records of {part.path} cannot be kept: {error}"
            lost = len(columns.record.get("time", ()))
            self._index.add(Columns(skipped={"no room to keep it": lost}))
        self._read += part.end - part.start

    def _elsewhere(self, part: Part) -> Columns:
        """Read a part of a file that was renamed since it was found."""
        for _ in range(_TRIES):
            for path in part.path.parent.glob("*.jsonl"):
                try:
                    return read_part(replace(part, path=path))
                except OSError:
                    continue
            # It may have been renamed again while it was looked for.
            time.sleep(_PAUSE)
        return Columns(skipped={"deleted before it was read": 1})


def _prepare() -> None:
    """Make a process ready to decode."""
    # Ctrl-C reaches it too; that it ends is for the process that started it to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is decoded has no cycles, and looking for some takes a tenth of the time.
    gc.disable()
