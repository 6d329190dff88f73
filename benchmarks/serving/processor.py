"""Who had the processor while something was measured."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.serving.running import Running

__all__ = ["Clock", "Shares", "busy_seconds"]

_STAT: Final = Path("/proc/stat")
# Of the first line of /proc/stat: user, nice, system, irq, softirq, and what a hypervisor took.
_BUSY_FIELDS: Final = (1, 2, 3, 6, 7, 8)


@dataclass(frozen=True)
class Shares:
    """Processor time in seconds.

    Attributes:
        server: of the server's processes.
        client: of children of this process that ended: the load generator.
        others: of all other programs on the machine, and what its hypervisor took away.
    """

    server: float
    client: float
    others: float


class Clock:
    """Counts processor time from its making on."""

    def __init__(self, server: Running) -> None:
        """Start counting.

        Args:
            server: what is measured.
        """
        self._server = server
        self._before = self._now()

    def shares(self) -> Shares:
        """Return what was used since; call it once the load generator has ended."""
        server, client, machine = (
            now - before for now, before in zip(self._now(), self._before, strict=True)
        )
        return Shares(server, client, max(0.0, machine - server - client))

    def _now(self) -> tuple[float, float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        machine = busy_seconds(_STAT.read_text(encoding="ascii"))
        return self._server.cpu_seconds(), children.ru_utime + children.ru_stime, machine


def busy_seconds(stat: str) -> float:
    """Return the seconds that all processors were busy or taken away, from /proc/stat's text."""
    fields = stat.split("\n", 1)[0].split()
    return sum(int(fields[number]) for number in _BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")
