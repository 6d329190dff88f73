"""What is ready right now, as the supervisor says it in a file."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from server.condition import Condition

__all__ = ["Watch"]

# The supervisor touches the file at least this often while it runs, TorchServe hanging or not.
_STALE_SECONDS: Final = 10.0


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
