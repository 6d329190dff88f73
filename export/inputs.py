"""Inputs to verify with: the examples, and inputs made from them that take other paths."""

from collections.abc import Iterator
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
    for example in definition.examples[:_EXAMPLES_VARIED]:
        made.extend(_transformed(example, definition.inputs, generator))
    return made


def _transformed(
    example: Example, options: tuple[InputOptions, ...], generator: torch.Generator
) -> Iterator[Example]:
    for factor in (-1.0, 0.0, 10.0, 0.01):
        yield tuple(
            _bounded(tensor * factor, option)
            if tensor.is_floating_point()
            else _shuffled(tensor, generator)
            for tensor, option in zip(example, options, strict=True)
        )
    for _ in range(_NOISE_DRAWS):
        yield tuple(
            _bounded(_noise(tensor, generator), option)
            if tensor.is_floating_point()
            else _shuffled(tensor, generator)
            for tensor, option in zip(example, options, strict=True)
        )


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    values = tensor.double()
    spread = values.std(correction=0) if tensor.numel() > 1 else values.abs().max()
    shift = torch.randn((), generator=generator, dtype=torch.float64)
    draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return (values.mean() + spread * (draw + shift)).to(tensor.dtype)


def _shuffled(tensor: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=generator)
    return tensor.flatten()[order].reshape(tensor.shape)


def _bounded(tensor: Tensor, option: InputOptions) -> Tensor:
    if option.minimum is None and option.maximum is None:
        return tensor
    return tensor.clamp(option.minimum, option.maximum)
