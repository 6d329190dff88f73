"""The condition of a run: found out, written down, and told to the front."""

import os
from collections.abc import Sequence

from server.archives import Archive, Selection
from server.condition import FAILED, Condition
from server.errors import ServingError
from server.front import Front
from server.marks import DRAINING, Marks, failed
from server.monitor import Monitor
from server.processes import Processes
from server.sample_request import Target, try_model
from server.start import Run
from server.version_watch import Limits
from server.watch import DefaultWatch

__all__ = ["Watched"]


class Watched:
    """The condition of a run, kept up to date for all who ask, and for the front.

    Args:
        run: The run.
        selection: What is served, and what was left out.
        processes: The processes of the run.
        front: The front, if there is one; its marks are set.
        limits: When a model is given up.
        strict: Whether a model that cannot be served ends the others.

    Attributes:
        run: As it was given.
        draining: Whether a stop was asked for.
        condition: As it was seen last.
    """

    def __init__(
        self,
        run: Run,
        selection: Selection,
        processes: Processes,
        front: Front | None,
        *,
        limits: Limits,
        strict: bool,
    ) -> None:
        addresses = run.addresses
        host = addresses.ports["inference"][0]
        target = (
            Target(front.inference_socket) if front else Target(None, host, addresses.inference)
        )
        self.run = run
        self.draining = False
        self.condition = Condition()
        self._strict, self._processes = strict, processes
        left_out = zip(selection.lost, selection.left_out, strict=True)
        self._left_out = {f"model {name}": line for name, line in left_out}
        served = {archive.name for archive in run.archives}
        self._lost = {failed(name) for name in selection.lost if name not in served}
        self._marks = Marks(front.admin_socket, front.marks_file) if front else None
        self._defaults = DefaultWatch(addresses.management_url)
        self._monitor = Monitor(
            addresses.management_url,
            run.archives,
            check=lambda archive: try_model(target, archive, run.config.model_seconds),
            lines=run.lines,
            limits=limits,
            say=run.console.line,
        )
        self.condition.write(run.condition)

    def look(self) -> Condition:
        """Look at everything once, and tell.

        Raises:
            ServingError: A process ended, or no model is left that can be served; or one cannot be
                where all have to be.
        """
        self._processes.check()
        parts = self._left_out | self._processes.problems
        condition = self._monitor.look(draining=self.draining, parts=parts)
        if condition != self.condition:
            condition.write(self.run.condition)
            self.condition = condition
        os.utime(self.run.condition)
        lost = [one for one in condition.models if one.state == FAILED]
        if self._marks is not None:
            self._marks.set(self._marked([(one.name, one.version) for one in lost]))
        if lost and (self._strict or len(lost) == len(condition.models)):
            raise ServingError("; ".join(self._said(one.name, one.problem) for one in lost))
        return condition

    def serving(self) -> list[Archive]:
        """Those that were not given up."""
        lost = {(one.name, one.version) for one in self.condition.models if one.state == FAILED}
        return [one for one in self.run.archives if (one.name, one.version) not in lost]

    def _marked(self, lost: Sequence[tuple[str, str]]) -> set[str]:
        found = {failed(name, version) for name, version in lost}
        # A request that names no version means the default, which can be switched.
        first = {one.name: one.version for one in reversed(self.run.archives)}
        for name, version in lost:
            if (self._defaults.default(name) or first[name]) == version:
                found.add(failed(name))
        return self._lost | found | ({DRAINING} if self.draining else set())

    def _said(self, name: str, problem: str | None) -> str:
        files = ", ".join(one.path.name for one in self.run.archives if one.name == name)
        return f"Model {name!r} ({files}) cannot be served: {problem}; lines above say why."
