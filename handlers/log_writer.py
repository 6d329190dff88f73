"""The activation log's writer: a process that appends lines from a channel to a file.

`handlers.log_process` runs this file as `python -I -S -`, on standard input: the archive's folder
may be gone when the writer has to be started again. So it imports the standard library only.

Every line is looked at in the channel, written, and only then taken out of it. Whenever this
process is killed, the next one finds in the channel what was not written; lines that were written
but not yet taken out are then written twice. The process ends when the channel's other end is
closed and the channel is empty.
"""

import errno
import fcntl
import os
import signal
import socket
import stat
import sys
import time
from bisect import bisect_right
from collections.abc import MutableSequence, Sequence
from contextlib import suppress
from datetime import datetime
from mmap import mmap
from typing import Final

__all__ = ["COUNTERS", "COUNTER_BYTES", "LogFile", "Writer"]

COUNTERS: Final = ("written", "disk_full", "read_only", "folder_missing", "io_error")
"""What the shared block counts, 8 bytes each: lines written, and lines dropped by reason."""
COUNTER_BYTES: Final = 8 * len(COUNTERS)

_REASONS: Final = {
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "disk_full",
    errno.EFBIG: "disk_full",
    errno.EROFS: "read_only",
    errno.EACCES: "read_only",
    errno.EPERM: "read_only",
    errno.ENOENT: "folder_missing",
    errno.ENOTDIR: "folder_missing",
    errno.EEXIST: "folder_missing",
}
_SO_PEEK_OFF: Final = 42
_BATCH: Final = 256
# Between two batches: fewer, larger writes, and a worker that need not wake this process for each
# line. What waits meanwhile waits in the channel, where nothing that happens to the worker reaches.
_PAUSE_SECONDS: Final = 0.005
_RETRY_SECONDS: Final = 0.1
_BLOCK: Final = 1 << 12


class LogFile:
    """One file of lines that several processes append to.

    All workers of a model share one file, so that there is one to read and the limit holds for
    the model, however often workers come and go. A lock on the file itself (flock, which ends
    with its owner) is held for each append, and whoever holds it makes sure that the path still
    leads to this file, that the last line is whole, and that the file is put aside in time:
    `NAME.jsonl` becomes `NAME.1.jsonl`, that `NAME.2.jsonl`, and so on.

    Args:
        path: the file; it and its folder are made when they are not there.
        max_bytes: a line that would make the file longer than this starts a new one.
        max_age: so does a line when the first one is more than so many seconds old.
        keep: how many files put aside stay.
        private: whether only this process's user may read the file, whoever made it.
    """

    def __init__(
        self, path: str, max_bytes: int, max_age: float, keep: int, private: bool = False
    ) -> None:
        self._path = path
        self._private = private
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._keep = keep
        self._file = -1
        self._left_at = 0
        self._started: float | None = None

    def append(self, lines: memoryview, ends: Sequence[int]) -> int:
        """Append as many of the lines, from the first on, as the file takes.

        Args:
            lines: the lines' bytes, each line with its newline.
            ends: where in `lines` each of them ends.

        Returns:
            How many were appended, at least one.

        Raises:
            OSError: none could be; the file is as it was.
        """
        try:
            size = self._lock()
            while size and self._is_due(size + ends[0]):
                self._put_aside()
                size = self._lock()
            fitting = max(1, bisect_right(ends, self._max_bytes - size))
            written = os.write(self._file, lines[: ends[fitting - 1]])
            whole = bisect_right(ends, written)
            self._left_at = size + (ends[whole - 1] if whole else 0)
            if self._left_at < size + written:
                os.ftruncate(self._file, self._left_at)
            if not whole:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fcntl.flock(self._file, fcntl.LOCK_UN)
            return whole
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, which gives the lock back; the next line opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> int:
        """Return the size of the file that is now open, locked, current and whole."""
        while True:
            if self._file < 0:
                self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX)
            status = os.fstat(self._file)
            with suppress(FileNotFoundError):
                if os.path.samestat(status, os.stat(self._path)):
                    break
            self.close()  # Put aside by another process, or moved or deleted by somebody.
        size = status.st_size
        if size != self._left_at:
            size = self._mend(size)
        if size == 0:
            self._started = time.time()
        elif self._started is None:
            self._started = self._first_time(status.st_mtime)
        return size

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        mode = 0o640
        if self._private:
            # Nobody lets this process write where it did not mean to.
            flags |= os.O_NOFOLLOW
            mode = 0o600
        try:
            self._file = os.open(self._path, flags, mode)
        except FileNotFoundError:
            folder_mode = 0o700 if self._private else 0o777
            os.makedirs(os.path.dirname(self._path), folder_mode, exist_ok=True)
            self._file = os.open(self._path, flags, mode)
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if self._private:
            os.fchmod(self._file, mode)
        self._left_at = 0
        self._started = None

    def _mend(self, size: int) -> int:
        """Cut off the half line of a writer that was killed; return what is left."""
        end = size
        while end:
            start = max(0, end - _BLOCK)
            newline = os.pread(self._file, end - start, start).rfind(b"\n")
            end = start + newline + 1
            if newline >= 0:
                break
        if end < size:
            os.ftruncate(self._file, end)
        return end

    def _first_time(self, otherwise: float) -> float:
        """Return the time in the file's first line, in seconds since 1970."""
        head = os.pread(self._file, 1024, 0)
        with suppress(ValueError):
            text = head.partition(b'"time":"')[2].partition(b'"')[0].decode()
            return datetime.fromisoformat(text).timestamp()
        return otherwise

    def _is_due(self, size: int) -> bool:
        assert self._started is not None
        return size > self._max_bytes or time.time() - self._started > self._max_age

    def _put_aside(self) -> None:
        taken = 0
        while os.path.lexists(self._aside(taken + 1)):
            taken += 1
        # More than one too many are left over from a time when more were kept.
        for place in range(max(self._keep, 1), taken + 1):
            os.unlink(self._aside(place))
        for place in range(min(taken, self._keep - 1), 0, -1):
            os.replace(self._aside(place), self._aside(place + 1))
        if self._keep:
            os.replace(self._path, self._aside(1))
        else:
            os.unlink(self._path)
        self.close()

    def _aside(self, place: int) -> str:
        root, extension = os.path.splitext(self._path)
        return f"{root}.{place}{extension}"


class Writer:
    """Moves lines from the channel to the file, and counts them.

    Args:
        channel: the receiving end; each message is one line with its newline.
        file: where the lines go.
        counters: the shared block, one number for each of `COUNTERS`.
        capacity: no message is longer than this.
    """

    def __init__(
        self,
        channel: socket.socket,
        file: LogFile,
        counters: MutableSequence[int] | memoryview,
        capacity: int,
    ) -> None:
        self._channel = channel
        self._file = file
        self._counters = counters
        self._capacity = capacity
        self._buffer = memoryview(bytearray(2 * capacity))
        self._batch = _BATCH
        self._failure = ""
        self._retry_at = 0.0
        try:
            # Each look goes on where the last one ended; also undoes what a killed writer set.
            channel.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        except OSError:
            self._batch = 1

    def run(self) -> None:
        """Write until the channel is closed and empty."""
        while ends := self._look():
            written = self._store(ends)
            for _ in ends:
                self._channel.recv(1)  # Takes the whole message out.
            self._count("written", written)
            if written < len(ends):
                self._count(self._failure, len(ends) - written)
            if len(ends) < self._batch:
                time.sleep(_PAUSE_SECONDS)

    def _look(self) -> list[int]:
        """Fill the buffer with lines and leave them in the channel; return where each ends."""
        ends: list[int] = []
        used = 0
        flags = socket.MSG_PEEK
        while len(ends) < self._batch and used <= self._capacity:
            try:
                size = self._channel.recv_into(self._buffer[used:], 0, flags)
            except BlockingIOError:
                break
            if size == 0:
                break
            used += size
            ends.append(used)
            flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        return ends

    def _store(self, ends: list[int]) -> int:
        """Write the buffer's lines; return how many were written."""
        done = 0
        start = 0
        while done < len(ends) and time.monotonic() >= self._retry_at:
            try:
                done += self._file.append(
                    self._buffer[start:], [end - start for end in ends[done:]]
                )
            except OSError as error:
                self._failure = _REASONS.get(error.errno or 0, "io_error")
                self._retry_at = time.monotonic() + _RETRY_SECONDS
            else:
                start = ends[done - 1]
        return done

    def _count(self, counter: str, number: int) -> None:
        self._counters[COUNTERS.index(counter)] += number


def _main(channel: str, counters: str, capacity: str, path: str, *limits: str) -> None:
    # Told to end or not, what is in the channel must be written; its closing is the sign to end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    max_bytes, max_age, keep, access = limits
    file = LogFile(path, int(max_bytes), float(max_age), int(keep), access == "private")
    block = memoryview(mmap(int(counters), COUNTER_BYTES)).cast("Q")
    Writer(socket.socket(fileno=int(channel)), file, block, int(capacity)).run()


if __name__ == "__main__":
    _main(*sys.argv[1:])
