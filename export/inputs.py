"""Inputs to verify with: the examples, and inputs made from them that take other paths."""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from export.definition import Definition, InputOptions

__all__ = ["Example", "variants"]

Example = tuple[Tensor, ...]

_EXAMPLES_VARIED: Final = 6
_NOISE_DRAWS: Final = 8


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
