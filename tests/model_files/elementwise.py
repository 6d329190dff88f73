"""Scales and shifts each value by itself: a row's answer is the same to the bit in any company."""

import torch
from torch import Tensor, nn

INPUTS = ["x"]
OUTPUTS = ["y"]
LABELS = {}


class Elementwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x * 3) - x


def build() -> nn.Module:
    return Elementwise()


def examples() -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(rows, width, generator=generator),) for rows, width in ((3, 4), (2, 7))]
