"""A branch that only one kind of row takes, and that a trace would lose."""

import torch
from torch import Tensor, nn

INPUTS = ["x"]


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


def build() -> nn.Module:
    return Branch()


def examples() -> list[tuple[Tensor, ...]]:
    return [(torch.ones(2, 3),)]
