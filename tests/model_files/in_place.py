"""Works in place on its input, through a view: whoever runs it twice must keep the input."""

import torch
from torch import Tensor, nn

INPUTS = ["x"]
OUTPUTS = ["y"]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0].mul_(2)
        return self.relu(x)


def build() -> nn.Module:
    return InPlace()


def examples() -> list[tuple[Tensor, ...]]:
    return [(torch.ones(2, 3),), (torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),)]
