"""The processes of a run: watched together, ended in the opposite order of their start."""

import signal
from dataclasses import dataclass

from server.errors import ServingError
from server.process import ChildProcess

__all__ = ["Processes"]


@dataclass(frozen=True)
class _Member:
    name: str
    child: ChildProcess
    seconds: float
    ask: signal.Signals


class Processes:
    """Children by name."""

    def __init__(self) -> None:
        self._members: list[_Member] = []

    def add(
        self,
        name: str,
        child: ChildProcess,
        seconds: float,
        ask: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Take in a child that was started.

        Args:
            name: For messages.
            child: The child.
            seconds: How long it may take to end.
            ask: The signal that asks it to.
        """
        self._members.append(_Member(name, child, seconds, ask))

    def check(self) -> None:
        """Look whether all run.

        Raises:
            ServingError: One ended without having been asked to.
        """
        for member in self._members:
            status = member.child.poll()
            if status is not None:
                how = f"exit code {status}" if status >= 0 else f"signal {_signal(-status)}"
                raise ServingError(
                    f"{member.name} ended without having been asked to ({how}); lines above may "
                    "say why."
                )

    def stop(self) -> None:
        """End all, the last that was started first."""
        while self._members:
            member = self._members.pop()
            member.child.stop(member.seconds, member.ask)


def _signal(number: int) -> str:
    return signal.Signals(number).name
