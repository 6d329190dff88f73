"""A small convolutional network that reads the 8 x 8 handwritten digits of scikit-learn.

Trained by `models/train.py`; the pixels are those of scikit-learn, 0 to 16, scaled in the module.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models import data

VERSION = "1.0"
INPUTS = {
    "image": {
        "shape": [-1, 8, 8],
        "minimum": 0.0,
        "maximum": 16.0,
        # A photographed or drawn digit: bright on dark, one value a pixel, 0 to 16.
        "image": {
            "mode": "L",
            "background": "dark",
            "fit": "pad",
            "resample": "box",
            "scale": 16 / 255,
        },
    }
}
OUTPUTS = ["probabilities"]
LABELS = {"probabilities": [str(digit) for digit in range(10)]}
WEIGHTS = Path(__file__).parent / "weights" / "digits.safetensors"


class DigitsNet(nn.Module):
    """Map image, float32 [rows, 8, 8] with values 0 to 16, to ten class probabilities."""

    def __init__(self) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)
        self.softmax = nn.Softmax(dim=1)

    def logits(self, image: Tensor) -> Tensor:
        """Return the logits that training needs, float32 [rows, 10]."""
        logits: Tensor = self.head(self.features(image.unsqueeze(1) / 8.0 - 1.0))
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities, float32 [rows, 10]; each row sums to 1."""
        probabilities: Tensor = self.softmax(self.logits(image))
        return probabilities


def build() -> nn.Module:
    """Return the trained network in eval mode."""
    # The first weights are drawn only to be overwritten: leave the caller's generator alone.
    with torch.random.fork_rng(devices=[]):
        model = DigitsNet()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def calibration() -> list[tuple[Tensor, ...]]:
    """Return held-out digits, float32 [300, 8, 8]: what requests should look like."""
    return [(data.held_apart()[0].images,)]


def examples() -> list[tuple[Tensor, ...]]:
    """Return held-out digits, float32 [rows, 8, 8], rows 1, 2, 5 and 16."""
    images = data.split().held_out.images[:24]
    return [(batch,) for batch in images.split([1, 2, 5, 16])]
