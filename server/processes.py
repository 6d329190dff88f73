"""The processes of a run: watched together, ended in the opposite order of their start."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from server.errors import ServingError
from server.process import ChildProcess, reap

__all__ = ["Processes"]

# A process that may be started again is so after these seconds, by how often it died in a row.
_BACK_OFF: Final = (0.2, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# Orphans that have ended may wait: looking for them reads all of /proc.
_REAP_SECONDS: Final = 10.0
# One that ran this long has recovered.
_STEADY_SECONDS: Final = 10.0


@dataclass
class _Member:
    name: str
    child: ChildProcess
    seconds: float
    ask: signal.Signals
    again: Callable[[], ChildProcess] | None
    started: float
    deaths: int = 0
    proven: bool = False
    due: float | None = None


class Processes:
    """Children by name.

    Args:
        say: Writes a line for the person who started the server.
        clock: Seconds; for tests.
    """

    def __init__(
        self, say: Callable[[str], None] = print, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._members: list[_Member] = []
        self._say, self._clock = say, clock
        self._reaped = clock()

    def add(
        self,
        name: str,
        child: ChildProcess,
        seconds: float,
        ask: signal.Signals = signal.SIGTERM,
        again: Callable[[], ChildProcess] | None = None,
    ) -> None:
        """Take in a child that was started.

        Args:
            name: For messages.
            child: The child.
            seconds: How long it may take to end.
            ask: The signal that asks it to.
            again: Starts another in its place; None where the run ends with it.
        """
        self._members.append(_Member(name, child, seconds, ask, again, self._clock()))

    def check(self) -> None:
        """Look whether all run; start those again that may be.

        Raises:
            ServingError: One ended without having been asked to, and is not to be started again;
                or it was, as often as there are back-offs, and never ran for `_STEADY_SECONDS`.
        """
        if self._clock() - self._reaped >= _REAP_SECONDS:
            self._reaped = self._clock()
            reap()
        for member in self._members:
            if member.due is not None:
                self._restart(member)
                continue
            status = member.child.poll()
            if status is None:
                continue
            how = f"exit code {status}" if status >= 0 else f"signal {_signal(-status)}"
            ended = f"{member.name} ended without having been asked to ({how})"
            now = self._clock()
            if now - member.started >= _STEADY_SECONDS:
                member.deaths, member.proven = 0, True
            # One that has run is needed by fewer than are served without it: it is tried for ever.
            lost = member.deaths == len(_BACK_OFF) and not member.proven
            if member.again is None or lost:
                raise ServingError(f"{ended}; lines above may say why.")
            member.due = now + _BACK_OFF[min(member.deaths, len(_BACK_OFF) - 1)]
            member.deaths += 1
            member.child.stop(0)
            self._say(f"{ended}; it is started again.")

    @property
    def problems(self) -> dict[str, str]:
        """Those that have ended and are about to be started again."""
        return {one.name: "it ended, and is started again" for one in self._members if one.due}

    def ask_last(self) -> None:
        """Ask the child that was started last to end."""
        self._members[-1].child.ask(self._members[-1].ask)

    def last_ended(self) -> bool:
        """Whether the child that was started last has ended."""
        return self._members[-1].child.poll() is not None

    def hurry_last(self) -> None:
        """Give the child that was started last no time to end."""
        self._members[-1].seconds = 0.0

    def stop(self) -> None:
        """End all, the last that was started first."""
        while self._members:
            member = self._members.pop()
            member.child.stop(member.seconds, member.ask)

    def _restart(self, member: _Member) -> None:
        assert member.again is not None
        assert member.due is not None
        if self._clock() >= member.due:
            member.child, member.started, member.due = member.again(), self._clock(), None


def _signal(number: int) -> str:
    return signal.Signals(number).name
