"""Two inputs of different dtypes, one bounded, and two outputs; each row by itself, to the bit."""

import torch
from torch import Tensor, nn

INPUTS = {"a": {}, "b": {"minimum": 0, "maximum": 9}}
OUTPUTS = ["sum", "even"]


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a * 0.1 + b.unsqueeze(1), b % 2 == 0


def build() -> nn.Module:
    return Pair()


def examples() -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(rows, 2, generator=generator), torch.arange(rows) % 10) for rows in (3, 1, 12)
    ]
