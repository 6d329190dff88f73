"""Says what CUDA says of an error that stays for good, where its input is negative."""

import torch
from torch import Tensor, nn

INPUTS = ["x"]
OUTPUTS = ["y"]


class LostGpu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x < 0).any()):
            raise RuntimeError("CUDA error: device-side assert triggered")
        return x * 2


def build() -> nn.Module:
    return LostGpu()


def examples() -> list[tuple[Tensor, ...]]:
    return [(torch.tensor([[1.0, 2.0]]),), (torch.tensor([[0.0, 2.0], [1.0, 2.0]]),)]
