"""Domain-adversarial network: reads digits under a light it has no labels for.

Ganin & Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015
(arXiv 1409.7495). A label head learns on the source domain; a domain head behind a gradient
reversal layer drives the features to be the same in both domains. Trained by `models/train.py`,
the domains are those of `models/data.py`.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models import data
from models.gradient_reversal import GradientReversal

VERSION = "1.0"
INPUTS = {"image": {"shape": [-1, 8, 8], "minimum": 0.0, "maximum": 16.0}}
OUTPUTS = ["digit", "domain"]
LABELS = {"digit": [str(digit) for digit in range(10)], "domain": ["source", "target"]}
WEIGHTS = Path(__file__).parent / "weights" / "dann.safetensors"
ALPHA = 0.3


class DANN(nn.Module):
    """Map image, float32 [rows, 8, 8] with values 0 to 16, to digit and domain probabilities."""

    def __init__(self, alpha: float = ALPHA) -> None:
        """Draw the weights from torch's global generator; `alpha` is the reversal's strength."""
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
        self.digit = nn.Linear(64, 10)
        self.reversal = GradientReversal(alpha)
        self.domain = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
        self.softmax = nn.Softmax(dim=1)

    @torch.jit.export
    def logits(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return digit logits, float32 [rows, 10], and domain logits, float32 [rows, 2]."""
        features = self.features(image.unsqueeze(1) / 8.0 - 1.0)
        return self.digit(features), self.domain(self.reversal(features))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return digit [rows, 10] and domain [rows, 2] probabilities, float32; rows sum to 1."""
        digit, domain = self.logits(image)
        return self.softmax(digit), self.softmax(domain)


def build() -> nn.Module:
    """Return the trained network in eval mode."""
    # The first weights are drawn only to be overwritten: leave the caller's generator alone.
    with torch.random.fork_rng(devices=[]):
        model = DANN()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def calibration() -> list[tuple[Tensor, ...]]:
    """Return held-out digits of the source domain, float32 [300, 8, 8]: those it has labels for.

    So the target domain is seen as drift.
    """
    return [(data.held_apart()[0].images,)]


def examples() -> list[tuple[Tensor, ...]]:
    """Return held-out digits of both domains, float32 [rows, 8, 8], rows 1, 2, 5 and 16."""
    images = data.split().held_out.images[:24]
    both = torch.where(torch.arange(24).reshape(-1, 1, 1) % 2 == 0, images, data.shift(images))
    return [(batch,) for batch in both.split([1, 2, 5, 16])]
