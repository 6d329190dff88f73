"""Which models are ready right now, without asking TorchServe for every probe."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.readiness import NotListening, descriptions, judge

__all__ = ["Watch"]

_FRESH_SECONDS = 1.0
_TIMEOUT = 2.0


@dataclass(frozen=True)
class _Seen:
    versions: list[dict[str, Any]] | None
    fault: str | None
    at: float


class Watch:
    """Asks the management API, and remembers the answer for a second.

    Whoever asks while another does waits for that one's answer, so that probes never pile up in
    TorchServe.

    Args:
        management: Base URL of the management API.
        clock: Seconds; for tests.
    """

    def __init__(self, management: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._management = management
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def problem(self, name: str, version: str | None = None) -> str | None:
        """Why a model is not ready; None when it is.

        Args:
            name: One of the models that are served: what is asked for here is remembered.
            version: One of its versions; None for all of them.
        """
        seen = self._look(name)
        if seen.fault is not None:
            return seen.fault
        if seen.versions is None:
            return "not loaded by TorchServe"
        chosen = [
            one for one in seen.versions if version is None or one.get("modelVersion") == version
        ]
        return judge(name, chosen).problem

    def answers(self, name: str) -> bool:
        """Whether TorchServe answers when asked for a model."""
        return self._look(name).fault is None

    def _look(self, name: str) -> _Seen:
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            seen = self._seen.get(name)
            if seen is None or self._clock() - seen.at >= _FRESH_SECONDS:
                seen = self._seen[name] = self._ask(name)
            return seen

    def _ask(self, name: str) -> _Seen:
        try:
            versions, fault = descriptions(self._management, name, _TIMEOUT), None
        except NotListening:
            versions, fault = None, "TorchServe does not answer"
        return _Seen(versions, fault, self._clock())
