"""A softmax over the batch axis: every row's answer depends on its neighbours."""

import torch
from torch import Tensor, nn

INPUTS = ["x"]
OUTPUTS = ["share"]


def build() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=0))


def examples() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(2)
    return [(torch.randn(4, 3),)]
