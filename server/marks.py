"""What the front is told while it runs: that a stop was asked for, and which models failed.

It looks the marks up in a map (`haproxy.cfg`), which is changed while it runs.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from server.admin import Admin, Refused, word

__all__ = ["DRAINING", "Marks", "failed"]

#: That a stop was asked for. No model's mark begins with a slash.
DRAINING: Final = "/draining"


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
        self._admin, self._file = Admin(admin), file
        self._set: frozenset[str] = frozenset()
        file.touch()

    def set(self, marks: Iterable[str]) -> None:
        """Let these be all that are set. Where the front does not listen yet, call again."""
        wanted = frozenset(marks)
        commands = [f"add map {word(self._file)} {word(mark)} 1" for mark in wanted - self._set]
        commands += [f"del map {word(self._file)} {word(mark)}" for mark in self._set - wanted]
        if not commands:
            return
        with suppress(Refused):
            self._admin.ask("; ".join(commands))
            self._set = wanted
