"""Dead units: across requests, how often each unit of a ReLU-like layer was active."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from formats.layers import Layer
from handlers.values import Array

__all__ = ["RELU_LIKE", "UnitWatch"]

RELU_LIKE: Final = frozenset({"ReLU", "ReLU6", "Threshold", "Hardshrink", "Softshrink"})
"""Classes whose output is exactly zero where a unit is not active."""

ROWS_NEEDED: Final = 200
"""Rows before a unit may be called dead: one that is active in 2 % of rows is then missed with a
chance of 0.98²⁰⁰, which is 2 %."""

_SHARE: Final = 0.05
_IMAGE_AXES: Final = 4


@dataclass
class _Layer:
    rows: int = 0
    active: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class UnitWatch:
    """Counts, over rows that were looked at, in how many each unit was active.

    A unit is a channel of an image (axis 1 of four), else an entry of the last axis; it is active
    in a row if it is not zero anywhere in it. Looking means running rows once more, so it is
    done for batches that are observed anyway, and for at most a twentieth of the time.

    Args:
        layers: those of the model; the chosen ReLU-like ones are watched.
        clock: seconds; for tests.
    """

    def __init__(
        self, layers: Sequence[Layer], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._axes = {
            layer.name: layer.axes[0]
            for layer in layers
            if layer.chosen and layer.type in RELU_LIKE and layer.axes and layer.axes[0] >= 0
        }
        self._seen: dict[str, _Layer] = {}
        self._clock = clock
        self._next = 0.0

    def look(self, raw: Callable[[frozenset[str]], Mapping[str, Array]]) -> bool:
        """Count a batch, if there is time for it. Never raises.

        Args:
            raw: runs the batch and returns what the named layers put out, by activation key.

        Returns:
            Whether it was counted.
        """
        started = self._clock()
        if not self._axes or started < self._next:
            return False
        try:
            for key, values in raw(frozenset(self._axes)).items():
                self._count(key, values)
            counted = True
        except Exception:  # The answer is ready; what cannot be counted is not.
            counted = False
        ended = self._clock()
        self._next = ended + (ended - started) * (1 / _SHARE - 1)
        return counted

    def dead(self) -> dict[str, int]:
        """Return how many units were never active, by the key of each layer seen often enough."""
        return {
            key: int(np.count_nonzero(seen.active == 0))
            for key, seen in self._seen.items()
            if seen.rows >= ROWS_NEEDED
        }

    def report(self) -> dict[str, dict[str, Any]]:
        """Say which units were never active.

        Returns:
            By activation key: `rows` looked at, `units` in all, `active_fraction` (mean over
            units), and `dead`, the indices of units never active; None while too few rows were
            looked at to say.
        """
        return {
            key: {
                "rows": seen.rows,
                "units": len(seen.active),
                "active_fraction": float(seen.active.mean() / seen.rows),
                "dead": np.flatnonzero(seen.active == 0).tolist()
                if seen.rows >= ROWS_NEEDED
                else None,
            }
            for key, seen in self._seen.items()
            if seen.rows and len(seen.active)
        }

    def _count(self, key: str, values: Array) -> None:
        name = key.partition("@")[0]
        rows = np.moveaxis(values != 0, self._axes[name], 0)
        if rows.ndim < 2:
            return
        unit_axis = 1 if rows.ndim == _IMAGE_AXES else rows.ndim - 1
        others = tuple(axis for axis in range(1, rows.ndim) if axis != unit_axis)
        active = rows.any(axis=others).sum(axis=0)
        seen = self._seen.setdefault(key, _Layer())
        if len(seen.active) != len(active):
            # The number of units depends on the input, so that its units have no identity.
            if seen.rows:
                return
            seen.active = np.zeros(len(active), dtype=np.int64)
        seen.active = seen.active + active
        seen.rows += len(rows)
