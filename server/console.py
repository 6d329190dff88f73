"""Standard error, shared by TorchServe's lines and one line of progress."""

import shutil
import sys
import threading
from contextlib import suppress
from typing import TextIO

__all__ = ["Console"]


class Console:
    """Writes lines; on a terminal, keeps a status line below them that is updated in place."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._lock = threading.Lock()
        self._status = ""

    @property
    def terminal(self) -> bool:
        """Whether a person watches: the status line is then updated in place."""
        return self._terminal

    def line(self, text: str) -> None:
        """Write a line above the status."""
        with self._lock:
            self._write(f"{self._erase()}{text}\n{self._status}")

    def status(self, text: str) -> None:
        """Set the status; off a terminal it is a line like any other."""
        with self._lock:
            if self._terminal:
                # A line that wraps could not be erased.
                text = text[: shutil.get_terminal_size().columns - 1]
                self._write(self._erase() + text)
                self._status = text
            else:
                self._write(text + "\n")

    def clear(self) -> None:
        """Remove the status."""
        with self._lock:
            self._write(self._erase())
            self._status = ""

    def _erase(self) -> str:
        return "\r\x1b[K" if self._status else ""

    def _write(self, text: str) -> None:
        # Serving goes on when nobody reads any more.
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
