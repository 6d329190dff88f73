"""What the example models are shown: usual digits, and others that they were not built for."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from models import data

__all__ = ["STRANGE", "strange"]

SHIFTED: Final = "shifted"


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _uniform(images: Tensor) -> Tensor:
    return 16 * torch.rand(images.shape, generator=_generator())


def _gaussian(images: Tensor) -> Tensor:
    return (8 + 4 * torch.randn(images.shape, generator=_generator())).clamp(0, 16)


def _noisy(images: Tensor) -> Tensor:
    return (images + 4 * torch.randn(images.shape, generator=_generator())).clamp(0, 16)


STRANGE: Final[Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]] = {
    SHIFTED: ("the second domain of `dann`: half the contrast, on a slope of light", data.shift),
    "uniform": ("noise, each pixel evenly from 0 to 16", _uniform),
    "gaussian": ("noise around 8, standard deviation 4", _gaussian),
    "blank": ("nothing but 0", torch.zeros_like),
    "inverted": ("dark on bright", lambda images: 16 - images),
    "faint": ("half the contrast", lambda images: images / 2),
    "unscaled": ("divided by 255, as for another model", lambda images: images / 255),
    "turned": ("rows and columns exchanged", lambda images: images.transpose(1, 2)),
    "moved": ("three pixels to the side, around the edge", lambda images: images.roll(3, 2)),
    "half": ("the left half gone", lambda images: images * (torch.arange(8) >= 4)),
    "noisy": ("digits under noise of standard deviation 4", _noisy),
}
"""By name: what it is, and how it is made of images, float32 [n, 8, 8]."""


def strange(name: str, images: Tensor) -> Tensor:
    """Return images that the models were not built for, float32 [n, 8, 8]."""
    return STRANGE[name][1](images)
