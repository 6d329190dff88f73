"""Calls a torch.autograd.Function, which TorchScript cannot save."""

import torch
from torch import Tensor, nn


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x * 2

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad * 3


class UsesTwice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Twice.apply(x)


def build() -> nn.Module:
    return UsesTwice()


def examples() -> list[tuple[Tensor, ...]]:
    return [(torch.ones(2, 3),)]
