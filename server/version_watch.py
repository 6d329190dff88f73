"""What becomes of one version of a model: its workers, their deaths, and whether it answers."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from server.archives import Archive
from server.condition import FAILED, LOADING, READY, RECOVERING, ModelCondition
from server.liveness import alive
from server.sample_request import Outcome

__all__ = ["Limits", "VersionWatch"]

_RETRY_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Limits:
    """When a version is given up, and how often it is tried.

    Attributes:
        startup_seconds: How long it may have no worker that has loaded it.
        deaths_at_start: How often its worker may die before it has ever loaded it.
        deaths_in_a_row: How often it may afterwards, without having loaded it in between.
        refusals: How often its sample request may fail before it has ever been answered.
        check_seconds: How long after a sample request the next is sent.
    """

    startup_seconds: float = 300.0
    deaths_at_start: int = 2
    deaths_in_a_row: int = 6
    refusals: int = 3
    check_seconds: float = 300.0


class VersionWatch:
    """Follows one version of a model.

    Args:
        archive: The version's.
        limits: When it is given up.
        check: Sends its sample request; runs in a thread of its own.
    """

    def __init__(self, archive: Archive, limits: Limits, check: Callable[[], Outcome]) -> None:
        self.archive = archive
        self.failure: str | None = None
        self.lines: tuple[str, ...] = ()
        self._limits, self._check = limits, check
        self._pids: frozenset[int] = frozenset()
        self._expected = 1
        # The last process of each worker that had loaded the model.
        self._processes: dict[str, int] = {}
        self._restarts = 0
        # Of each worker that does not answer, the processes that it has had since one did.
        self._tried: dict[str, set[int]] = {}
        self._given_up: frozenset[int] = frozenset()
        self._missing_since: float | None = None
        self._silent_since: float | None = None
        self._was_complete = False
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self._checked: tuple[frozenset[int], float] = (frozenset(), 0.0)
        self._answers, self._answered, self._refusals = False, False, 0
        self._said = "not tried"

    @property
    def stable(self) -> bool:
        """Whether there is nothing that the management API could say soon and is not known."""
        if self.failure is not None:
            return True
        living = [pid for pid in self._pids if alive(pid)]
        return len(living) == len(self._pids) and len(living) >= self._expected

    @property
    def processes(self) -> set[int]:
        """Process ids that its workers have, or had when they were last seen."""
        return set().union(self._pids, *self._tried.values())

    def described(self, description: Mapping[str, Any], now: float) -> None:
        """Take in what the management API says of it."""
        workers = description["workers"]
        up = [one for one in workers if one["status"] == "READY" and alive(one["pid"])]
        self._pids = frozenset(one["pid"] for one in up)
        if self.failure is not None and self._pids - self._given_up:
            # Somebody has given it workers again.
            self.failure, self.lines, self._refusals, self._silent_since = None, (), 0, None
        # One that was given up should have workers, and does not.
        if self.failure is None:
            self._expected = max(int(description["minWorkers"]), len(workers))
        self._tried = {one["id"]: self._tried.get(one["id"], set()) for one in workers}
        for one in workers:
            tried = self._tried[one["id"]]
            if one in up:
                tried.clear()
                self._restarts += self._processes.get(one["id"], one["pid"]) != one["pid"]
                self._processes[one["id"]] = one["pid"]
            elif one["pid"] > 0:  # -1 until the process has said its id
                tried.add(one["pid"])
        if len(self._pids) >= self._expected:
            self._was_complete, self._missing_since = True, None
        elif self._missing_since is None:
            self._missing_since = now
        if not self._pids:
            self._answers = False

    def unknown(self) -> None:
        """Note that TorchServe does not know it: it takes in all archives before it listens."""
        self.failure = self.failure or "TorchServe could not take it in"

    def look(self, now: float) -> None:
        """See to its sample request, and whether it has to be given up."""
        # A worker that was killed since it was described.
        self._pids = frozenset(pid for pid in self._pids if alive(pid))
        if not self._pids:
            self._answers = False
        self._hear()
        self._send(now)
        if self.failure is None:
            self.failure = self._hopeless(now)
            # They end soon, and may be described as they were until then.
            self._given_up = frozenset(self.processes)

    def condition(self) -> ModelCondition:
        """Its condition."""
        state, problem = self._state()
        return ModelCondition(
            self.archive.name,
            self.archive.version,
            state,
            len(self._pids),
            self._expected,
            self._said,
            problem,
            self.lines,
            self._restarts,
        )

    def _state(self) -> tuple[str, str | None]:
        if self.failure is not None:
            return FAILED, self.failure
        waiting = RECOVERING if self._was_complete else LOADING
        missing = len(self._pids) < self._expected
        counted = f"{len(self._pids)} of {self._expected} workers ready" if missing else None
        # At its start it has to be complete once, unless that does not come to be.
        if not self._pids or (missing and not self._was_complete):
            return waiting, counted
        if not self._answers:
            said = "its sample request is on its way" if self._said == "not tried" else self._said
            return (RECOVERING if self._answered else LOADING), said
        return READY, counted

    def _hopeless(self, now: float) -> str | None:
        limits = self._limits
        deaths = max((self._deaths(tried) for tried in self._tried.values()), default=0)
        most = limits.deaths_in_a_row if self._was_complete else limits.deaths_at_start
        late = (
            self._missing_since is not None and now - self._missing_since > limits.startup_seconds
        )
        if deaths >= most or late:
            if self._pids:
                # The others serve.
                self._was_complete = True
                return None
            if deaths >= most:
                return f"its worker died {deaths} times while loading it"
            return f"not ready within {limits.startup_seconds:g} seconds"
        if self._answered:
            return None
        if self._pids and self._silent_since is None:
            self._silent_since = now
        since = now if self._silent_since is None else self._silent_since
        silent = now - since > limits.startup_seconds
        return self._said if silent or self._refusals >= limits.refusals else None

    @staticmethod
    def _deaths(tried: set[int]) -> int:
        return sum(not alive(pid) for pid in tried)

    def _send(self, now: float) -> None:
        known, at = self._checked
        due = now - at >= (self._limits.check_seconds if self._answers else _RETRY_SECONDS)
        if self._refusals:
            due = due or now - at >= _RETRY_SECONDS
        if self._thread is not None or not self._pids or not (due or self._pids - known):
            return
        self._checked = (self._pids, now)
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        self._outcome = self._check()

    def _hear(self) -> None:
        if self._thread is None or self._thread.is_alive():
            return
        outcome, self._thread, self._outcome = self._outcome, None, None
        if outcome is None or not self._pids:
            return
        self._said = outcome.said
        if outcome.works:
            self._answers, self._answered, self._refusals = True, True, 0
        elif outcome.works is False:
            self._refusals += 1
            # Once may have been chance.
            self._answers = self._answers and self._refusals < 2
