"""The digits of scikit-learn as tensors, their fixed split, and a second domain made from them.

1797 handwritten digits of 8 x 8 pixels with values 0 to 16 (Alpaydin & Kaynak, "Optical
Recognition of Handwritten Digits", UCI, 1998), shipped inside scikit-learn: nothing is downloaded.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

HELD_OUT = 0.25
SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """Images, float32 [n, 8, 8] with values 0 to 16, and their labels, int64 [n], 0 to 9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, index: Tensor) -> "Images":
        """Return the images at `index`, int64 [m]."""
        return Images(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Split:
    """Images to train on and held-out images; none is in both."""

    train: Images
    held_out: Images


@dataclass(frozen=True)
class Domains:
    """What unsupervised domain adaptation may see: labelled source, unlabelled target images.

    `target` is float32 [m, 8, 8]; no target image is the shifted copy of a source image.
    """

    source: Images
    target: Tensor


@lru_cache(maxsize=1)
def digits() -> Images:
    """Return all 1797 digits in the order of scikit-learn."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).to(torch.float32).reshape(-1, 8, 8)
    return Images(images, torch.from_numpy(labels).to(torch.int64))


def stratified(data: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Part `data` in two, the second with `fraction` of each class; both are shuffled."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    second = torch.zeros(len(data), dtype=torch.bool)
    for label in range(10):
        members = data.labels[order] == label
        quota = round(fraction * int(members.sum()))
        second |= members & (members.cumsum(0) <= quota)
    return data.take(order[~second]), data.take(order[second])


@lru_cache(maxsize=1)
def split() -> Split:
    """Return the one split that training and the examples share, 3 to 1 in each class."""
    return Split(*stratified(digits(), HELD_OUT, SPLIT_SEED))


@lru_cache(maxsize=1)
def held_apart() -> tuple[Images, Images]:
    """Part the held-out images, 2 to 1 in each class: 300 for calibration, 150 for nothing at all.

    A baseline is made of held-out images, since a model is surer of those it was trained on than
    of those it will be asked about.
    """
    return stratified(split().held_out, 1 / 3, SPLIT_SEED)


@lru_cache(maxsize=1)
def domains() -> Domains:
    """Return the training images parted in two domains, evenly in each class.

    The labels of the target serve for that parting and are dropped here.
    """
    source, target = stratified(split().train, 0.5, SPLIT_SEED)
    return Domains(source, shift(target.images))


def shift(images: Tensor) -> Tensor:
    """Return `images`, float32 [n, 8, 8], as scanned in uneven light: the target domain.

    The ink has half its contrast, and the ground brightens from 0 at the left edge to 8 (half the
    range) at the right. Values stay within 0 to 16.
    """
    ground = torch.linspace(0.0, 8.0, images.shape[-1])
    return (0.5 * images + ground).clamp(0.0, 16.0)
