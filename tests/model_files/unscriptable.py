"""Uses Python that TorchScript does not compile, on a line that the error must name."""

import torch
from torch import Tensor, nn


class Unscriptable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        try:  # this is line 9 of the file
            return x + 1
        except ValueError:
            return x


def build() -> nn.Module:
    return Unscriptable()


def examples() -> list[tuple[Tensor, ...]]:
    return [(torch.ones(2, 3),)]
