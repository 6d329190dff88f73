"""How much a model computes: counted, not timed, so that it is the same on every run."""

from dataclasses import dataclass
from typing import Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from export.definition import Definition

__all__ = ["Work", "count"]

_CONVOLVES_MUCH: Final = 20_000_000
"""Floating-point operations of a row's convolutions. From there on oneDNN was faster for one row as
for eight, in eight networks of 0.1 to 1500 million; below, what it does around them costs more."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one row, counted as torch's `FlopCounterMode` does.

    A multiply-add is two, and what is neither a convolution, nor a product of matrices, nor
    attention is none.

    Attributes:
        operations: all of them.
        convolutions: those of convolutions.
    """

    operations: int
    convolutions: int

    @property
    def convolves_much(self) -> bool:
        """Whether oneDNN runs the model faster."""
        return self.convolutions >= _CONVOLVES_MUCH


def count(definition: Definition) -> Work:
    """Run a definition's first example, and count."""
    example = definition.examples[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        definition.module(*(part.clone() for part in example))
    rows = max(len(example[0]) if example[0].ndim else 1, 1)
    found = counter.get_flop_counts().get("Global", {})
    convolutions = sum(many for name, many in found.items() if "convolution" in str(name))
    return Work(sum(found.values()) // rows, convolutions // rows)
