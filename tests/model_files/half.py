"""Works in bfloat16 and takes a flag: dtypes that JSON does not have."""

import torch
from torch import Tensor, nn

INPUTS = ["x", "flag"]
OUTPUTS = ["y"]


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 1.5, dtype=torch.bfloat16))

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        return torch.where(flag.unsqueeze(-1), x * self.scale, x)


def build() -> nn.Module:
    return Half()


def examples() -> list[tuple[Tensor, ...]]:
    return [(torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([True, False]))]
