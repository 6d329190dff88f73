"""What a compiled hook recorded, as numbers, and the statistics made of them.

A hooked layer writes, for each part of its output in each call, five integers (call, part,
whether its inputs were finite, number of units, values in each unit) and some vectors with one
entry per unit. A unit is a row, or one of several equal shares of a row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from formats.layers import Layer
from formats.statistics import GradientStatistics, LayerStatistics

__all__ = [
    "GRADIENT",
    "INSPECT",
    "OFF",
    "RAW",
    "STATISTICS",
    "Recorded",
    "activation_key",
    "cut",
    "is_suspect",
    "layer_key",
    "merge",
    "merge_gradient",
    "read",
    "totals",
]

OFF: Final = 0
STATISTICS: Final = 1
RAW: Final = 2
INSPECT: Final = 3
GRADIENT: Final = 4
"""The modes of a hooked layer: nothing; five vectors for statistics (mean, population variance,
minimum, maximum, 2-norm of the signs); a copy of the output; two vectors of counts (zeros, values
that are not finite); the output itself, to differentiate with respect to it."""

WIDTH: Final = {STATISTICS: 5, RAW: 1, INSPECT: 2, GRADIENT: 1}
"""Vectors per record, by mode."""

_CODES: Final = 5


@dataclass(frozen=True)
class Recorded:
    """One part of a layer's output in one call.

    Attributes:
        layer: the layer.
        call: 0 for the first time it ran.
        part: position of the part in the layer's `parts`.
        finite_inputs: whether its inputs were finite; known in mode INSPECT only.
        units: how many units the output has.
        count: values in each unit.
        first: position of its first vector among all vectors.
    """

    layer: Layer
    call: int
    part: int
    finite_inputs: bool
    units: int
    count: int
    first: int

    @property
    def axis(self) -> int:
        """The axis of the output that counts rows, or -1."""
        return self.layer.axes[self.part] if self.part < len(self.layer.axes) else -1

    @property
    def key(self) -> str:
        """The name in an activation record; see `formats.activation.Activations`."""
        return layer_key(self.layer, self.call, self.part)


def layer_key(layer: Layer, call: int, part: int) -> str:
    """Return the key of a part by its position."""
    label = layer.parts[part] if part < len(layer.parts) else str(part)
    return activation_key(layer.name, call, label)


def activation_key(name: str, call: int, label: str) -> str:
    """Return `name`, with `@call` from the second call on and `:label` for one of several parts."""
    called = f"{name}@{call}" if call else name
    return f"{called}:{label}" if label else called


def read(layers: Sequence[Layer], codes: Sequence[Sequence[int]], mode: int) -> list[Recorded]:
    """Read the integers that `observe` returned, one list per layer, in execution order."""
    records = []
    first = 0
    for layer, numbers in zip(layers, codes, strict=True):
        for start in range(0, len(numbers), _CODES):
            call, part, finite, units, count = numbers[start : start + _CODES]
            records.append(Recorded(layer, call, part, bool(finite), units, count, first))
            first += WIDTH[mode]
    return records


def cut(values: Sequence[float], records: Sequence[Recorded], mode: int) -> list[Sequence[float]]:
    """Cut the joined vectors of `summary` apart again, as `read` returned the records."""
    vectors = []
    start = 0
    for record in records:
        for _ in range(WIDTH[mode]):
            vectors.append(values[start : start + record.units])
            start += record.units
    return vectors


def merge(
    vectors: Sequence[Sequence[float]], count: int, units: range, counts: tuple[int, int] | None
) -> LayerStatistics:
    """Make the statistics of some units taken together.

    Args:
        vectors: the five of mode STATISTICS.
        count: values in each unit.
        units: which units.
        counts: how many of their values are zero and not finite, where that was counted; else
            they are taken to be finite.
    """
    elements = count * len(units)
    if elements == 0:
        return LayerStatistics(0, None, None, None, None, None, 0)
    if len(units) == 1 and counts is None:
        return _of_one([vector[units.start] for vector in vectors], count)
    means, variances, least, greatest, signs = ([v[unit] for unit in units] for v in vectors)
    mean = sum(means) / len(means)
    variance = sum(
        own_variance + (own - mean) * (own - mean)
        for own_variance, own in zip(variances, means, strict=True)
    ) / len(means)
    if counts is None:
        zeros, non_finite = elements - round(sum(sign * sign for sign in signs)), 0
    else:
        zeros, non_finite = counts
    return LayerStatistics(
        elements=elements,
        mean=_finite(mean),
        std=_finite(math.sqrt(variance) if variance >= 0 else math.nan),
        min=_finite(_extreme(least, min)),
        max=_finite(_extreme(greatest, max)),
        zero_fraction=zeros / elements,
        non_finite=non_finite,
    )


def _of_one(numbers: Sequence[float], count: int) -> LayerStatistics:
    """`merge` for a unit by itself, as most requests have one row: nothing to be merged."""
    mean, variance, least, greatest, sign = numbers
    return LayerStatistics(
        elements=count,
        mean=_finite(mean),
        std=_finite(math.sqrt(variance) if variance >= 0 else math.nan),
        min=_finite(least),
        max=_finite(greatest),
        zero_fraction=(count - round(sign * sign)) / count,
        non_finite=0,
    )


def merge_gradient(
    vectors: Sequence[Sequence[float]], count: int, units: range, counts: tuple[int, int] | None
) -> GradientStatistics:
    """Make the statistics of some units of a gradient; arguments as for `merge`."""
    own = merge(vectors, count, units, counts)
    norm = None
    if own.mean is not None and own.std is not None:
        norm = math.sqrt(own.elements * (own.mean * own.mean + own.std * own.std))
    return GradientStatistics(**vars(own), norm=norm)


def totals(
    layers: Sequence[Layer], codes: Sequence[Sequence[int]], joined: Sequence[float]
) -> Iterator[tuple[Recorded, LayerStatistics | None]]:
    """Read what `summary` returned: each record with the statistics of all its units together.

    None stands where some value may not be finite.
    """
    records = read(layers, codes, STATISTICS)
    vectors = cut(joined, records, STATISTICS)
    for one in records:
        five, units = vectors[one.first : one.first + WIDTH[STATISTICS]], range(one.units)
        yield one, None if is_suspect(five, units) else merge(five, one.count, units, None)


def is_suspect(vectors: Sequence[Sequence[float]], units: range) -> bool:
    """Tell whether some value in these units may not be finite, by the five vectors."""
    return not all(math.isfinite(vector[unit]) for vector in vectors for unit in units)


def _extreme(values: Sequence[float], choose: Callable[[Sequence[float]], float]) -> float:
    return math.nan if any(map(math.isnan, values)) else choose(values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
