"""Dead units: across requests, how often each unit of a ReLU-like layer was active."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from engine.units import UnitCounts, watched
from formats.layers import Layer
from formats.units import MOST_COUNTED, LayerUnits
from handlers.values import Array

__all__ = ["ROWS_NEEDED", "UnitWatch"]

ROWS_NEEDED: Final = 200
"""Rows before a unit may be called dead: one that is active in 2 % of rows is then missed with a
chance of 0.98²⁰⁰, which is 2 %."""

_SHARE: Final = 0.05
_SAVED: Final = 1.0
"""Seconds of looking that are saved up while nobody asks, so that a few hundred requests in a row,
which is what people begin with, are enough to say which units are dead."""


class UnitWatch:
    """Counts, over rows that were looked at, in how many each unit was active.

    What a unit is, `engine.units` says. Looking means running rows once more, so it is done for
    batches that are observed anyway, and for at most a twentieth of the time, a second of which may
    be saved up.

    Args:
        layers: those of the model; the chosen ReLU-like ones are watched.
        clock: seconds; for tests.
    """

    def __init__(
        self, layers: Sequence[Layer], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._axes = watched(layers)
        self._seen: dict[str, UnitCounts] = {}
        self._clock = clock
        self._credit = _SAVED
        self._ended = clock()

    def look(self, raw: Callable[[frozenset[str]], Mapping[str, Array]]) -> bool:
        """Count a batch, if there is time for it. Never raises.

        Args:
            raw: runs the batch and returns what the named layers put out, by activation key.

        Returns:
            Whether it was counted.
        """
        started = self._clock()
        if not self._axes:
            return False
        saved = self._credit + (started - self._ended) * _SHARE
        self._credit, self._ended = min(_SAVED, saved), started
        if self._credit < 0:
            return False
        try:
            for key, values in raw(frozenset(self._axes)).items():
                self._count(key, values)
            counted = True
        except Exception:  # The answer is ready; what cannot be counted is not.
            counted = False
        self._credit -= self._clock() - started
        return counted

    def dead(self) -> dict[str, int]:
        """Return how many units were never active, by the key of each layer seen often enough."""
        return {
            key: int(np.count_nonzero(seen.active == 0))
            for key, seen in self._seen.items()
            if seen.rows >= ROWS_NEEDED
        }

    def rows(self) -> int:
        """Return how many rows were looked at, of the layer that had the most."""
        return max((seen.rows for seen in self._seen.values()), default=0)

    def layers(self) -> dict[str, LayerUnits]:
        """Return how often the units of each layer that was looked at were active, by its key."""
        return {
            key: _layer(seen) for key, seen in self._seen.items() if seen.rows and len(seen.active)
        }

    def report(self) -> dict[str, dict[str, Any]]:
        """Say which units were never active.

        Returns:
            By activation key: `rows` looked at, `units` in all, `active_fraction` (mean over
            units), and `dead`, the indices of units never active; None while too few rows were
            looked at to say.
        """
        return {key: replace(units, active=None).to_json() for key, units in self.layers().items()}

    def _count(self, key: str, values: Array) -> None:
        axis = self._axes[key.partition("@")[0]]
        self._seen.setdefault(key, UnitCounts()).add(values, axis)


def _layer(seen: UnitCounts) -> LayerUnits:
    units = len(seen.active)
    dead = np.flatnonzero(seen.active == 0)[:MOST_COUNTED]
    return LayerUnits(
        rows=seen.rows,
        units=units,
        active_fraction=float(seen.active.mean() / seen.rows),
        dead=tuple(dead.tolist()) if seen.rows >= ROWS_NEEDED else None,
        active=tuple(seen.active.tolist()) if units <= MOST_COUNTED else None,
    )
