"""Two linear layers with a data-dependent branch: what tracing loses and scripting keeps.

The module of the TorchScript tutorial. The branch is taken on the mean over the whole batch, so
rows influence each other and one request's answer would depend on its neighbours: serve it one
request at a time, with a batch size of 1.
"""

import torch
from torch import Tensor, nn

VERSION = "1.0"
INPUTS = {"x": {"shape": [-1, 10]}}
OUTPUTS = ["y"]
SEED = 0


class ControlFlow(nn.Module):
    """Map x, float32 [rows, 10], to y, float32 [rows, 5], by one of two paths."""

    def __init__(self) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.fc1 = nn.Linear(10, 20)
        self.relu = nn.ReLU()
        self.tanh = nn.Tanh()
        self.fc2 = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Use ReLU where the mean of `x` is positive, else tanh (NaN included)."""
        hidden = self.fc1(x)
        if x.mean() > 0:  # noqa: SIM108 - the branch is what the example is about
            hidden = self.relu(hidden)
        else:
            hidden = self.tanh(hidden)
        y: Tensor = self.fc2(hidden)
        return y


def build() -> nn.Module:
    """Return the module in eval mode; its weights are always those of `SEED`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        return ControlFlow().eval()


def examples() -> list[tuple[Tensor, ...]]:
    """Return inputs of both signs, float32 [rows, 10], so that both branches run; rows 1 to 4."""
    generator = torch.Generator().manual_seed(SEED)
    result: list[tuple[Tensor, ...]] = []
    for rows in (1, 2, 4):
        x = torch.rand(rows, 10, generator=generator) + 0.1
        result += [(x,), (-x,)]
    # Mixed signs within one input, and a mean of exactly 0: the edge of the branch.
    mixed = torch.linspace(-1.0, 1.5, 30).reshape(3, 10)
    return [*result, (mixed,), (torch.zeros(2, 10),)]
