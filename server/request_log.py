"""Where the request log goes: standard output or a file, written so that nobody waits for it."""

import os
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from server.errors import UsageError

__all__ = ["OFF", "STDOUT", "RequestLog", "resolve"]

#: Values of the setting that are no files.
OFF: Final = "off"
STDOUT: Final = "stdout"
#: Bytes that may wait for a reader or a disk that is slow.
_MOST_WAITING: Final = 4 * 1024 * 1024
_CLOSE_SECONDS: Final = 1.0
_MODE: Final = 0o640


def resolve(setting: str) -> str:
    """Check where the log is to go.

    Args:
        setting: "off", "stdout" or a file.

    Returns:
        The same; a file with its whole path.

    Raises:
        UsageError: The file cannot be written.
    """
    if setting in (OFF, STDOUT):
        return setting
    path = Path(setting).absolute()
    try:
        os.close(_open(path))
    except OSError as error:
        raise UsageError(
            f"The request log {path} cannot be written ({error.strerror}); --request-log takes "
            "stdout, off, or a file in a folder that is there."
        ) from None
    return str(path)


class RequestLog:
    """Writes lines in a thread of its own; those that come faster than they go are dropped.

    Args:
        target: A file, opened for appending, and anew when another took its place or it is
            gone; or the number of a file descriptor.
    """

    def __init__(self, target: Path | int) -> None:
        self._path = target if isinstance(target, Path) else None
        self._fd = target if isinstance(target, int) else -1
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._failed: int | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._dropped

    def write(self, lines: Sequence[bytes]) -> None:
        """Hand lines over, each with its newline. Never waits for them to be written."""
        text = b"".join(lines)
        with self._changed:
            if self._bytes + len(text) > _MOST_WAITING:
                self._dropped += len(lines)
                return
            self._bytes += len(text)
            self._waiting.append((text, len(lines)))
            self._changed.notify()

    def close(self) -> None:
        """Write what waits, for a second at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                text, lines = self._waiting.popleft()
            try:
                self._put(text)
                self._failed = None
            except OSError as error:
                self._dropped += lines
                if error.errno != self._failed:
                    self._failed = error.errno
                    where = self._path or "standard output"
                    print(
                        f"vitrine: the request log cannot be written to {where} "
                        f"({error.strerror}); its lines are dropped",
                        file=sys.stderr,
                        flush=True,
                    )
            with self._changed:
                self._bytes -= len(text)

    def _put(self, text: bytes) -> None:
        if self._path is not None:
            self._reopen(self._path)
        left = memoryview(text)
        while left:
            left = left[os.write(self._fd, left) :]

    def _reopen(self, path: Path) -> None:
        """Follow the path: a rotation may have renamed the file."""
        try:
            there = os.stat(path)
            if self._fd >= 0:
                own = os.fstat(self._fd)
                if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino):
                    return
        except FileNotFoundError:
            pass
        new = _open(path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = new


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
