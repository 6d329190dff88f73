"""How much a model computes: counted, not timed, so that it is the same on every run."""

from typing import Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from export.definition import Definition

__all__ = ["convolves_much"]

_LEAST: Final = 20_000_000
"""Floating-point operations of a row's convolutions. From there on oneDNN was faster for one row as
for eight, in eight networks of 0.1 to 1500 million; below, what it does around them costs more."""


def convolves_much(definition: Definition) -> bool:
    """Tell whether a model's convolutions are large enough that oneDNN runs them faster.

    An operation is counted as torch's `FlopCounterMode` does: a multiply-add is two.
    """
    example = definition.examples[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        definition.module(*(part.clone() for part in example))
    total = sum(
        count
        for operation, count in counter.get_flop_counts().get("Global", {}).items()
        if "convolution" in str(operation)
    )
    rows = len(example[0]) if example[0].ndim else 1
    return bool(total >= _LEAST * max(rows, 1))
