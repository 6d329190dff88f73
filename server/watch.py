"""What is ready right now, as the supervisor says, and which versions are the default."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from server.condition import Condition
from server.readiness import NotListening, default_version

__all__ = ["DefaultWatch", "Watch"]

# The supervisor touches the file at least this often while it runs, TorchServe hanging or not.
_STALE_SECONDS: Final = 10.0
_FRESH_SECONDS: Final = 1.0
_TIMEOUT: Final = 2.0


class Watch:
    """Reads the condition of the server.

    Args:
        path: Where the supervisor writes it.
        clock: Seconds since the epoch; for tests.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    def condition(self) -> Condition:
        """The condition; that nothing is live where the supervisor does not say any more."""
        try:
            age = self._clock() - self._path.stat().st_mtime
            condition = Condition.read(self._path)
        except OSError:
            return Condition(parts={"supervisor": "it has not said anything yet"})
        if age > _STALE_SECONDS:
            why = f"it has not said anything for {age:.0f} seconds"
            return Condition(models=condition.models, parts={"supervisor": why})
        return condition

    def problem(self, name: str, version: str | None = None) -> str | None:
        """See `Condition.problem`."""
        return self.condition().problem(name, version)


class DefaultWatch:
    """Asks TorchServe for default versions, of each model once a second at most.

    Args:
        management: Base URL of the management API.
        clock: Seconds; for tests.
    """

    def __init__(self, management: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._management, self._clock = management, clock
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._seen: dict[str, tuple[float, str | None]] = {}

    def default(self, name: str) -> str | None:
        """Which version of a model answers where a request names none.

        Args:
            name: One of the models that are served: what is asked for here is remembered.

        Returns:
            The version; None where TorchServe does not say.
        """
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            seen = self._seen.get(name)
            if seen is None or self._clock() - seen[0] >= _FRESH_SECONDS:
                seen = self._seen[name] = (self._clock(), self._ask(name))
            return seen[1]

    def _ask(self, name: str) -> str | None:
        try:
            return default_version(self._management, name, _TIMEOUT)
        except NotListening:
            return None
