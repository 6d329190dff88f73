"""Units of ReLU-like layers, and in how many rows each was active.

Export and serving count alike, so that the two can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from formats.layers import Layer

__all__ = ["RELU_LIKE", "UnitCounts", "watched"]

RELU_LIKE: Final = frozenset({"ReLU", "ReLU6", "Threshold", "Hardshrink", "Softshrink"})
"""Classes whose output is exactly zero where a unit is not active."""

_IMAGE_AXES: Final = 4


def watched(layers: Sequence[Layer]) -> dict[str, int]:
    """Return the chosen ReLU-like layers whose output has rows, each with the axis they are on."""
    return {
        layer.name: layer.axes[0]
        for layer in layers
        if layer.chosen and layer.type in RELU_LIKE and layer.axes and layer.axes[0] >= 0
    }


@dataclass
class UnitCounts:
    """In how many rows each unit of one layer was active.

    A unit is a channel of an image (axis 1 of four), else an entry of the last axis; it is active
    in a row if it is not zero anywhere in it.

    Attributes:
        rows: that were counted.
        active: int64 [units], of these, those in which each unit was active.
    """

    rows: int = 0
    active: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, values: NDArray[Any], axis: int) -> None:
        """Count what the layer put out in one run.

        Args:
            values: any shape; with fewer than two axes there are no units.
            axis: the one that counts rows.
        """
        rows = np.moveaxis(values != 0, axis, 0)
        if rows.ndim < 2:
            return
        unit_axis = 1 if rows.ndim == _IMAGE_AXES else rows.ndim - 1
        others = tuple(other for other in range(1, rows.ndim) if other != unit_axis)
        active = rows.any(axis=others).sum(axis=0)
        if len(self.active) != len(active):
            # The number of units depends on the input, so that its units have no identity.
            if self.rows:
                return
            self.active = np.zeros(len(active), dtype=np.int64)
        self.active = self.active + active
        self.rows += len(rows)
