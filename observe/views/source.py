"""What all views read from: the index, the baselines, and what was made of them lately."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from observe.baselines import Baselines
from observe.index import Index
from observe.queries import ModelSummary, models
from observe.reader import Reader, State

__all__ = ["Source"]

T = TypeVar("T")
_REMEMBERED: Final = 128


@dataclass
class Source:
    """A log that is being read, with its baselines.

    Args:
        reader: keeps the index up to date.
        index: to ask.
        baselines: to compare with.
        every: seconds between two looks of a browser for something new.
    """

    reader: Reader
    index: Index
    baselines: Baselines
    every: float = 2.0
    _made: OrderedDict[Hashable, tuple[str, Any]] = field(default_factory=OrderedDict, init=False)
    _locks: dict[Hashable, threading.Lock] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def state(self) -> State:
        """Return how far the log has been read."""
        return self.reader.state()

    def token(self) -> str:
        """Return a text that is another one whenever there is something new to show."""
        state = self.state()
        return f"{state.generation}.{state.complete:d}.{state.truncated}.{bool(state.problem):d}"

    def models(self) -> list[ModelSummary]:
        """Return the models of the log and their versions."""
        return self.cached("models", lambda: models(self.index))

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returns, or returned when the token was the same.

        Several who ask for the same at once wait for one to make it.
        """
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            token = self.token()
            with self._lock:
                known = self._made.get(key)
            if known is not None and known[0] == token:
                made: T = known[1]
                return made
            made = make()
            with self._lock:
                self._made[key] = (token, made)
                self._made.move_to_end(key)
                while len(self._made) > _REMEMBERED:
                    old, _ = self._made.popitem(last=False)
                    self._locks.pop(old, None)
            return made
