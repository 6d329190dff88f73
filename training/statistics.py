"""Statistics of many tensors, made on their device and brought to the host together.

Nothing here waits for a device before `Meter.read`: no value decides what runs. Each pass over a
large tensor is one of the cheap ones (on float32 a plain reduction runs 20 to 100 times faster than
`var_mean`, `count_nonzero` or the sum of a comparison), and small tensors, where calls cost more
than passes, are copied and measured together, those of equal size in one matrix.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from engine.statistics import by_rows
from formats.statistics import GradientStatistics, LayerStatistics

__all__ = ["Measured", "Meter", "moments"]

SMALL: Final = 16_384
"""Tensors with at most this many elements are copied, and measured with others later."""

_WIDTH: Final = 6
_Kind = tuple[torch.Size, torch.dtype, torch.device]
_Fields = tuple[float | None, float | None, float | None, float | None, float | None, int]


def moments(values: Tensor) -> Tensor:
    """Return mean, population variance, minimum, maximum and two counts of each line.

    Args:
        values: floating-point, [lines, elements], at least one element.

    Returns:
        [6, lines] in the dtype of `values`. The counts are those of elements that are zero and of
        elements that are not finite, and exact up to 2**24 in float32. NaN and infinities go into
        the other four as NumPy has them.
    """
    mean = values.mean(1, keepdim=True)
    # One buffer for everything that needs a pass of its own: memory is what such passes wait for.
    buffer = values - mean
    spread = torch.linalg.vector_norm(buffer, 2, 1)
    zeros = torch.eq(values, 0, out=buffer).sum(1)
    strange = torch.sub(values, values, out=buffer).ne_(0).sum(1)
    variance = spread * spread / values.size(1)
    return torch.stack(
        [mean.squeeze(1), variance, values.amin(1), values.amax(1), zeros, strange],
    )


@dataclass(frozen=True)
class Measured:
    """The numbers of one tensor.

    Attributes:
        elements: how many elements it has.
        numbers: the six of `moments`; none for an empty tensor.
    """

    elements: int
    numbers: Sequence[float]

    @property
    def finite(self) -> bool:
        """Whether all elements are finite."""
        return not self.elements or self.numbers[5] == 0

    def activation(self) -> LayerStatistics:
        """Return them as the statistics of a layer's output."""
        return LayerStatistics(self.elements, *self._fields())

    def gradient(self) -> GradientStatistics:
        """Return them as the statistics of a gradient."""
        norm = None
        if self.elements:
            mean, variance = self.numbers[:2]
            norm = _finite(math.sqrt(max(0.0, self.elements * (mean * mean + variance))))
        return GradientStatistics(self.elements, *self._fields(), norm)

    def _fields(self) -> _Fields:
        if not self.elements:
            return None, None, None, None, None, 0
        mean, variance, least, greatest, zeros, strange = self.numbers
        return (
            _finite(mean),
            _finite(math.sqrt(variance)),
            _finite(least),
            _finite(greatest),
            zeros / self.elements,
            int(strange),
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Meter:
    """Measures tensors, and keeps of each a copy of at most `SMALL` elements or six numbers."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._done: list[tuple[list[int], Tensor]] = []
        self._copies: defaultdict[_Kind, list[tuple[int, Tensor]]] = defaultdict(list)

    def add(self, tensor: Tensor) -> int:
        """Measure a dense tensor of any shape and dtype, as it is now; return its position.

        Complex numbers are measured by their magnitude.
        """
        position = len(self._sizes)
        count = tensor.numel()
        self._sizes.append(count)
        if count > SMALL:
            self._done.append(([position], moments(by_rows(tensor, -1))))
        elif count:
            kind = (tensor.shape, tensor.dtype, tensor.device)
            self._copies[kind].append((position, tensor.detach().clone()))
        return position

    def read(self) -> list[Measured]:
        """Return what was measured, by position, and begin anew; one transfer per device."""
        for copies in self._copies.values():
            lines = by_rows(torch.stack([line for _, line in copies]), 0)
            self._done.append(([position for position, _ in copies], moments(lines)))
        found = [Measured(count, ()) for count in self._sizes]
        for places, numbers in self._transferred():
            for line, place in enumerate(places):
                found[place] = Measured(self._sizes[place], numbers[line :: len(places)])
        self.clear()
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._sizes.clear()
        self._done.clear()
        self._copies.clear()

    def _transferred(self) -> list[tuple[list[int], list[float]]]:
        devices: defaultdict[torch.device, list[tuple[list[int], Tensor]]] = defaultdict(list)
        for positions, numbers in self._done:
            devices[numbers.device].append((positions, numbers))
        found = []
        for own in devices.values():
            joined: list[float] = torch.cat([numbers.flatten() for _, numbers in own]).tolist()
            start = 0
            for positions, _ in own:
                stop = start + _WIDTH * len(positions)
                found.append((positions, joined[start:stop]))
                start = stop
        return found
