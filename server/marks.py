"""What the front is told while it runs: that a stop was asked for, and which models failed.

It looks the marks up in a map (`haproxy.cfg`), which is changed through its runtime API:
https://docs.haproxy.org/2.6/management.html#9.3
"""

import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["DRAINING", "Marks", "failed"]

#: That a stop was asked for. No model's mark begins with a slash.
DRAINING: Final = "/draining"
_TIMEOUT: Final = 2.0


def failed(name: str, version: str | None = None) -> str:
    """The mark of a model, or of one of its versions, that failed."""
    return name if version is None else f"{name}/{version}"


class Marks:
    """The marks of a front.

    Args:
        admin: The socket of its runtime API.
        file: The map's file, which is made here: it has to exist when HAProxy starts.
    """

    def __init__(self, admin: Path, file: Path) -> None:
        self._admin, self._file = admin, file
        self._set: frozenset[str] = frozenset()
        file.touch()

    def set(self, marks: Iterable[str]) -> None:
        """Let these be all that are set. Where the front does not listen yet, call again."""
        wanted = frozenset(marks)
        commands = [f"add map {self._file} {_escaped(mark)} 1" for mark in wanted - self._set]
        commands += [f"del map {self._file} {_escaped(mark)}" for mark in self._set - wanted]
        if not commands:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(str(self._admin))
            connection.sendall("; ".join(commands).encode() + b"\n")
            while connection.recv(4096):
                pass
            self._set = wanted


def _escaped(mark: str) -> str:
    # One line of words; a model of somebody else's may be called anything.
    return re.sub(r"([\\; ])", r"\\\1", mark.replace("\n", " "))
