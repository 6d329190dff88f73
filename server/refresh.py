"""Files that hold while the server runs: looked at every second, and used again when they change.

Their content is read, not their time of change: where a secret is a link to a link, as in Docker
and Kubernetes, that says it best, and they are small.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from server.admin import Refused
from server.errors import UsageError

__all__ = ["Refresh", "Source"]

_SECONDS = 1.0


@dataclass(frozen=True)
class Source:
    """Something that is read from a file.

    Attributes:
        name: For messages.
        read: Reads it; raises `UsageError`.
        use: Replaces what was used before; raises `Refused`.
    """

    name: str
    read: Callable[[], Any]
    use: Callable[[Any], None]


class Refresh:
    """A thread that looks after sources.

    What is read is used once it was the same twice, because a file may be read while it is
    written. A file that cannot be used leaves what was there, and that is said once.

    Args:
        sources: What to look after; it is in use already.
        say: Shows a line.
    """

    def __init__(self, sources: Iterable[Source], say: Callable[[str], None]) -> None:
        self._watched = [_Watched(source, source.read(), say) for source in sources]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Look every second from now on."""
        if self._watched:
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def look(self) -> None:
        """Look at every source once."""
        for watched in self._watched:
            watched.look()

    def _run(self) -> None:
        while not self._ended.wait(_SECONDS):
            self.look()


class _Watched:
    def __init__(self, source: Source, used: Any, say: Callable[[str], None]) -> None:
        self._source, self._used, self._say = source, used, say
        self._seen, self._said = used, ""

    def look(self) -> None:
        try:
            found: Any = self._source.read()
        except UsageError as error:
            found = error
        # Errors are as good as what they say.
        same = repr(found) == repr(self._seen)
        self._seen = found
        if not same:
            return
        if isinstance(found, UsageError):
            self._tell(f"{found} What was read before still holds.")
        elif found == self._used:
            self._said = ""
        else:
            self._replace(found)

    def _replace(self, found: Any) -> None:
        try:
            self._source.use(found)
        except Refused as error:
            self._tell(f"{self._source.name}: HAProxy did not take the change ({error}).")
        else:
            self._used, self._said = found, ""
            self._tell(f"{self._source.name}: the change of the file holds from now on.")

    def _tell(self, line: str) -> None:
        if line != self._said:
            self._say(line)
            self._said = line
