"""A colleague's copy of the digit classifier, "only made robust against weak contrast".

For docs/tour.md. Two things are wrong with it. Find them on the page before you read on.
"""

import torch
from torch import Tensor, nn

from models import digits

VERSION = "1.0"
INPUTS = digits.INPUTS
OUTPUTS = digits.OUTPUTS
LABELS = digits.LABELS
LAYERS = ["contrast", "features.1", "features.3", "features.7", "head", "softmax"]


class Contrast(nn.Module):
    """Give each image, float32 [rows, 8, 8], the contrast that digits have."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the images; their standard deviation is 6."""
        return image * (6.0 / image.std(dim=(1, 2), keepdim=True))


class Patient(digits.DigitsNet):
    """The digit classifier behind it."""

    def __init__(self) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.contrast = Contrast()

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities, float32 [rows, 10]; each row sums to 1."""
        probabilities: Tensor = self.softmax(self.logits(self.contrast(image)))
        return probabilities


def build() -> nn.Module:
    """Return the network, with trained weights."""
    model = Patient()
    model.load_state_dict(digits.build().state_dict())
    with torch.no_grad():
        # "Pruned, it makes no difference": channels of the second convolution.
        for name, value in (("weight", 0.0), ("bias", -1.0)):
            model.get_parameter(f"features.2.{name}")[[4, 11, 21]] = value
    return model.eval()


def examples() -> list[tuple[Tensor, ...]]:
    """Return held-out digits, float32 [rows, 8, 8], rows 1, 2, 5 and 16."""
    return digits.examples()


def calibration() -> list[tuple[Tensor, ...]]:
    """Return held-out digits, float32 [300, 8, 8]."""
    return digits.calibration()
