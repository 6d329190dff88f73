"""Scores the match of a vector and a scalar weight: two inputs of different shapes."""

import torch
from torch import Tensor, nn

INPUTS = ["left", "right"]
OUTPUTS = ["score"]


class Match(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.project(left) * right.unsqueeze(-1)).sum(-1)


def build() -> nn.Module:
    torch.manual_seed(1)
    return Match()


def examples() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(2)
    return [(torch.randn(2, 3), torch.randn(2)), (torch.randn(5, 3), torch.randn(5))]
