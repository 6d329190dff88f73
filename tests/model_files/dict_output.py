"""Returns a dict of tensors with different dtypes and ranks."""

import torch
from torch import Tensor, nn

INPUTS = ["x"]


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.trunk(x)
        return {"hidden": hidden, "best": hidden.argmax(-1), "positive": hidden.sum(-1) > 0}


def build() -> nn.Module:
    torch.manual_seed(1)
    return Heads()


def examples() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(2)
    return [(torch.randn(3, 4),)]
