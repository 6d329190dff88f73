"""A stack of linear layers and ReLUs whose activations are watched with forward hooks.

The network of the tutorial's part on hooks. Each ReLU is a module of its own, because hooks see
modules and not functions.
"""

import torch
from torch import Tensor, nn

VERSION = "1.0"
INPUTS = {"features": {"shape": [-1, 16]}}
OUTPUTS = ["scores"]
SEED = 0


class ActivationMLP(nn.Module):
    """Map features, float32 [rows, 16], to scores, float32 [rows, 4]."""

    def __init__(self) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(16, 32),
            nn.ReLU(),
            nn.Linear(32, 32),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, 4)

    def forward(self, features: Tensor) -> Tensor:
        """Return scores, float32 [rows, 4], unbounded."""
        scores: Tensor = self.head(self.block(features))
        return scores


def build() -> nn.Module:
    """Return the module in eval mode; its weights are always those of `SEED`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        return ActivationMLP().eval()


def examples() -> list[tuple[Tensor, ...]]:
    """Return standard normal features, float32 [rows, 16], rows 1, 2, 5 and 8."""
    generator = torch.Generator().manual_seed(SEED)
    return [(torch.randn(rows, 16, generator=generator),) for rows in (1, 2, 5, 8)]
