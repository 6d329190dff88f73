"""Finds out the condition of a server, and ends what cannot be mended.

TorchServe's describe says which workers have loaded their model; that a process runs is seen by its
id; that a model answers, by a sample request, sent at the start, after a change, and every few
minutes.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from server.archives import Archive
from server.condition import Condition
from server.liveness import alive
from server.readiness import NotListening, descriptions, scale_to_zero
from server.sample_request import Outcome
from server.version_watch import Limits, VersionWatch
from server.worker_lines import WorkerLines

__all__ = ["Monitor"]

_TIMEOUT: Final = 2.0
# A model that is well is described this often, in turn with the others: a describe starts a program
# for each GPU.
_CALM_SECONDS: Final = 2.0
# How long TorchServe may take to end a worker before it is ended here.
_MERCY_SECONDS: Final = 5.0


class Monitor:
    """Follows all models of a server.

    Args:
        management: Base URL of TorchServe's management API.
        archives: What is served.
        check: Sends a model its sample request.
        lines: What workers printed.
        limits: When a model is given up.
        say: Writes a line for the person who started the server.
        clock: Seconds; for tests.
    """

    def __init__(
        self,
        management: str,
        archives: Sequence[Archive],
        *,
        check: Callable[[Archive], Outcome],
        lines: WorkerLines,
        limits: Limits,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._management, self._lines, self._say, self._clock = management, lines, say, clock
        self._versions = [VersionWatch(one, limits, partial(check, one)) for one in archives]
        self._asked: dict[str, float] = {}
        self._live = False
        self._told: set[VersionWatch] = set()
        self._dying: dict[int, float] = {}

    def look(self, *, draining: bool, parts: Mapping[str, str]) -> Condition:
        """Look at everything once; takes two seconds at most.

        Args:
            draining: Whether a stop was asked for.
            parts: What is wrong with what is no model.
        """
        self._describe()
        now = self._clock()
        for version in self._versions:
            version.look(now)
            if version.failure is not None and version not in self._told:
                self._give_up(version)
            elif version.failure is None:
                self._told.discard(version)
        self._end_dying(now)
        models = tuple(version.condition() for version in self._versions)
        return Condition(self._live, draining, models, parts)

    def _describe(self) -> None:
        for name in self._due():
            try:
                found = descriptions(self._management, name, _TIMEOUT)
            except NotListening:
                # Where it hangs, asking it for each model would take as long for each.
                self._live = False
                return
            self._live = True
            self._asked[name] = now = self._clock()
            described = {str(one.get("modelVersion")): one for one in found or ()}
            for version in self._versions:
                if version.archive.name == name and version.archive.version in described:
                    version.described(described[version.archive.version], now)
                elif version.archive.name == name:
                    version.unknown()

    def _due(self) -> list[str]:
        names = dict.fromkeys(one.archive.name for one in self._versions)
        if not self._live:
            return list(names)
        moving = {one.archive.name for one in self._versions if not one.stable}
        if not moving and self._clock() - max(self._asked.values()) >= _CALM_SECONDS:
            return [min(names, key=lambda name: self._asked.get(name, 0.0))]
        return [name for name in names if name in moving or name not in self._asked]

    def _give_up(self, version: VersionWatch) -> None:
        archive = version.archive
        version.lines = self._lines.last(archive.name, archive.version)
        processes = version.processes
        try:
            # TorchServe would start its worker again, without end.
            scale_to_zero(self._management, archive.name, archive.version)
        except NotListening:
            if version.failure != "TorchServe could not take it in":
                return
        self._told.add(version)
        self._dying |= dict.fromkeys(processes, self._clock() + _MERCY_SECONDS)
        last = f" ({version.lines[-1]})" if version.lines else ""
        self._say(
            f"Model {archive.name!r} ({archive.path.name}) cannot be served: "
            f"{version.failure}{last}."
        )

    def _end_dying(self, now: float) -> None:
        for pid, due in list(self._dying.items()):
            if not alive(pid):
                del self._dying[pid]
            elif now >= due:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
