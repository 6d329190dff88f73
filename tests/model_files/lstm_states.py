"""An LSTM that returns its states as nested tuples; the states have no leading row axis."""

import torch
from torch import Tensor, nn

INPUTS = ["x"]


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, (hidden, cell) = self.lstm(x)
        return out, (hidden, cell)


def build() -> nn.Module:
    torch.manual_seed(1)
    return Lstm()


def examples() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(2)
    return [(torch.randn(2, 3, 4),), (torch.randn(1, 6, 4),)]
