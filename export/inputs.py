"""Inputs to verify with: the examples, and inputs made from them that take other paths."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Final

import torch
from torch import Tensor

from export.definition import Definition, InputOptions
from formats.signature import Signature

__all__ = ["Example", "drawn", "search", "variants"]

Example = tuple[Tensor, ...]

_EXAMPLES_VARIED: Final = 6
_NOISE_DRAWS: Final = 8
_LONGEST: Final = 4096  # values along an axis that is tried longer
_LONGEST_SEARCHED: Final = 256


def variants(definition: Definition) -> list[Example]:
    """Return the definition's examples, followed by inputs made from them.

    Floating-point inputs are negated, zeroed, scaled by 10 and 0.01 and replaced by noise of
    the example's spread; integers and booleans are shuffled among the values that the examples
    hold, so that a token id stays a token id. Declared bounds are kept. Seeded.
    """
    generator = torch.Generator().manual_seed(0)
    made = list(definition.examples)
    columns = list(zip(*definition.examples, strict=True))
    ranges = [
        None if column[0].is_floating_point() else _range(column, option)
        for column, option in zip(columns, definition.inputs, strict=True)
    ]
    for example in definition.examples[:_EXAMPLES_VARIED]:
        made.extend(_transformed(example, definition.inputs, ranges, generator))
    return made


def drawn(definition: Definition, signature: Signature) -> Iterator[Example]:
    """Draw inputs from the signature: other sizes along free dimensions, and extreme values.

    Free dimensions get the sizes 1, 2, one more and twice as many as the first example's, all at
    once, and the rows then the same. Floating-point inputs are made 10,000 times larger and
    smaller, subnormal, and one of their values NaN and infinite where no bounds are declared.
    A module may refuse any of them.
    """
    example = definition.examples[0]
    free, rows = _axes(signature)
    for axes in (free, rows):
        sizes = [
            tensor.shape[axis] for tensor, own in zip(example, axes, strict=True) for axis in own
        ]
        for size in sorted({1, 2, *(size + 1 for size in sizes), *(2 * size for size in sizes)}):
            if sizes and size <= max(_LONGEST, *sizes):
                yield tuple(
                    _resized(tensor, own, size) for tensor, own in zip(example, axes, strict=True)
                )
    if any(tensor.is_floating_point() for tensor in example):
        yield from _extreme(example, definition.inputs)


def _axes(signature: Signature) -> tuple[list[list[int]], list[list[int]]]:
    """Return, for each input, its free axes without that of the rows, and that of the rows."""
    first = 1 if signature.row_axis else 0
    free = [
        [axis for axis, size in enumerate(spec.shape) if size == -1 and axis >= first]
        for spec in signature.inputs
    ]
    return free, [[0] if signature.row_axis else [] for _ in free]


def _resized(tensor: Tensor, axes: Sequence[int], size: int) -> Tensor:
    for axis in axes:
        index = torch.arange(size) % tensor.shape[axis]
        tensor = tensor.index_select(axis, index)
    return tensor


def _extreme(example: Example, options: Sequence[InputOptions]) -> Iterator[Example]:
    for factor in (1e4, -1e4, 1e-4):
        yield tuple(
            _bounded(tensor * factor, option) if tensor.is_floating_point() else tensor
            for tensor, option in zip(example, options, strict=True)
        )
    for value in (math.nan, math.inf, -math.inf, None):
        yield tuple(
            _with_one(tensor, value, option)
            for tensor, option in zip(example, options, strict=True)
        )


def _with_one(tensor: Tensor, value: float | None, option: InputOptions) -> Tensor:
    bounded = option.minimum is not None or option.maximum is not None
    if not tensor.is_floating_point() or bounded:
        return tensor
    if value is None:
        return torch.full_like(tensor, torch.finfo(tensor.dtype).smallest_normal / 2)
    made = tensor.clone()
    made.view(-1)[made.numel() // 2] = value
    return made


def search(
    definition: Definition, signature: Signature, constants: Callable[[], Sequence[float]]
) -> Iterator[Example]:
    """Draw inputs of all kinds without end: of any scale and shift, constant and sparse. Seeded.

    Numbers that stand in the module's code come first, as sizes and then as values: it is there
    that branches go one way or the other.

    Args:
        definition: has the examples that the inputs are made from, and their bounds.
        signature: says which dimensions are free.
        constants: returns the numbers in the code that has run so far.
    """
    generator = torch.Generator().manual_seed(1)
    columns = list(zip(*definition.examples, strict=True))
    ranges = [
        None if column[0].is_floating_point() else _range(column, option)
        for column, option in zip(columns, definition.inputs, strict=True)
    ]
    yield from _of_sizes(definition.examples[0], signature, constants())
    for round_number in count():
        known = constants()
        for example in definition.examples:
            made = []
            for tensor, option, span in zip(example, definition.inputs, ranges, strict=True):
                if span is not None:
                    drawn_one = _drawn(tensor, span, generator)
                else:
                    drawn_one = _bounded(_anything(tensor, generator), option)
                if known and round_number % 2 == 0:
                    constant = known[(round_number // 2) % len(known)]
                    drawn_one = _bounded(_with_constant(drawn_one, constant, generator), option)
                made.append(drawn_one)
            yield tuple(made)


def _of_sizes(
    example: Example, signature: Signature, constants: Sequence[float]
) -> Iterator[Example]:
    """Yield inputs whose free dimensions have the sizes of the constants, and one more or less."""
    near = {int(number) + step for number in constants for step in (-1, 0, 1)}
    free, rows = _axes(signature)
    for size in sorted(number for number in near if 0 < number <= _LONGEST_SEARCHED):
        for axes in (rows, free):
            if any(axes):
                yield tuple(
                    _resized(tensor, own, size) for tensor, own in zip(example, axes, strict=True)
                )


def _with_constant(tensor: Tensor, constant: float, generator: torch.Generator) -> Tensor:
    """Return a tensor with one of its values, or a few, set to a number or just beyond it."""
    if tensor.dtype == torch.bool:
        return tensor
    share, step = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    beyond = (0.0, 0.0, 1.0, -1.0)[int(step * 4)]
    value = constant + beyond * max(1.0, abs(constant) * 0.1)
    if tensor.is_floating_point():
        limit = torch.finfo(tensor.dtype).max
    else:
        limit = torch.iinfo(tensor.dtype).max
        value = round(value)
    chosen = torch.rand(tensor.shape, generator=generator) < share**3
    if tensor.numel():
        index = torch.randint(tensor.numel(), (1,), generator=generator)
        chosen.view(-1)[index] = True
    return tensor.masked_fill(chosen, min(max(value, -limit), limit))


def _anything(tensor: Tensor, generator: torch.Generator) -> Tensor:
    power, shift, density, kind = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    values = values + 6 * (shift - 0.5)
    if kind < 1 / 3:
        values = torch.where(
            torch.rand(tensor.shape, generator=generator) < density**2, values, 0.0
        )
    elif kind < 1 / 2:
        values = torch.full_like(values, 6 * (shift - 0.5))
    factor: float = 10 ** (6 * power - 3)
    return (values * factor).to(tensor.dtype)


def _range(column: Sequence[Tensor], option: InputOptions) -> tuple[int, int]:
    if column[0].dtype == torch.bool:
        return 0, 1
    low = min(int(tensor.min()) for tensor in column)
    high = max(int(tensor.max()) for tensor in column)
    if low == high:
        low = min(1, high) if high > 1 else min(0, low)
        high = max(1, high) if high >= 0 else high
    if option.minimum is not None and option.maximum is not None:
        low, high = int(option.minimum), int(option.maximum)
    return low, high


def _transformed(
    example: Example,
    options: tuple[InputOptions, ...],
    ranges: Sequence[tuple[int, int] | None],
    generator: torch.Generator,
) -> Iterator[Example]:
    for factor in (-1.0, 0.0, 10.0, 0.01, *(None for _ in range(_NOISE_DRAWS))):
        made = []
        for tensor, option, span in zip(example, options, ranges, strict=True):
            if span is not None:
                made.append(_drawn(tensor, span, generator))
            elif factor is None:
                made.append(_bounded(_noise(tensor, generator), option))
            else:
                made.append(_bounded(tensor * factor, option))
        yield tuple(made)


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    values = tensor.double()
    spread = values.std(correction=0) if tensor.numel() > 1 else values.abs().max()
    shift = torch.randn((), generator=generator, dtype=torch.float64)
    draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return (values.mean() + spread * (draw + shift)).to(tensor.dtype)


def _drawn(tensor: Tensor, span: tuple[int, int], generator: torch.Generator) -> Tensor:
    low, high = span
    return torch.randint(low, high + 1, tensor.shape, generator=generator).to(tensor.dtype)


def _bounded(tensor: Tensor, option: InputOptions) -> Tensor:
    if option.minimum is None and option.maximum is None:
        return tensor
    return tensor.clamp(option.minimum, option.maximum)
