"""Means of the channels of an image of any size: how cost grows with the bytes of a request."""

import torch
from torch import Tensor, nn

INPUTS = {"image": {"shape": [-1, 3, -1, -1]}}
OUTPUTS = ["means"]


class ChannelMeans(nn.Module):
    """Average each channel, float32 [rows, 3, height, width] to [rows, 3]."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the means."""
        return image.mean((2, 3))


def build() -> nn.Module:
    """Return the module; it has no weights."""
    return ChannelMeans()


def examples() -> list[tuple[Tensor, ...]]:
    """Return images of noise of two sizes, rows 2 and 1."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(2, 3, 8, 12, generator=generator),),
        (torch.rand(1, 3, 32, 16, generator=generator),),
    ]
