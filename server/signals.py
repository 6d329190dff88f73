"""Turns the signals that ask for a stop into something that the main loop can wait for."""

import os
import select
import signal
from types import FrameType, TracebackType
from typing import Self

__all__ = ["StopSignals"]


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP are noted instead of ending the process.

    Attributes:
        numbers: Those that have come, in their order.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._read_end, self._write_end = -1, -1

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.numbers)

    @property
    def hurried(self) -> bool:
        """Whether a SIGINT came after the first signal: a person does not want to wait."""
        return signal.SIGINT in self.numbers[1:]

    def wait(self, seconds: float) -> bool:
        """Sleep until a stop is asked for, a child ends, or the time has passed.

        Returns:
            Whether a stop was asked for.
        """
        if not self.requested and select.select([self._read_end], [], [], seconds)[0]:
            os.read(self._read_end, 4096)
        return self.requested

    def __enter__(self) -> Self:
        # A signal writes a byte here, which wakes wait() up.
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup and the shell's & ask for these to be ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
        signal.signal(signal.SIGCHLD, _wake)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._read_end)
        os.close(self._write_end)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)


def _wake(number: int, frame: FrameType | None) -> None:
    """A handler has to exist for SIGCHLD to wake wait() up."""
