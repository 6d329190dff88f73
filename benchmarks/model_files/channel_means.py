"""Means of an image's channels: next to no arithmetic, so that what is timed is the way to it."""

import torch
from torch import Tensor, nn

INPUTS = ["image"]
OUTPUTS = ["means"]


class ChannelMeans(nn.Module):
    """Average each channel, float32 [rows, 3, 224, 224] to [rows, 3]."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the means."""
        return image.mean((2, 3))


def build() -> nn.Module:
    """Return the module; it has no weights."""
    return ChannelMeans()


def examples() -> list[tuple[Tensor, ...]]:
    """Return two images of noise."""
    return [(torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)]
