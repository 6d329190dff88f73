"""What observing costs a step of training: `scripts/benchmark training`.

Times one step (forward, loss, backward, optimizer) of the same network by itself, inside
`training.observed` with its record made, and with hooks as people write them first, which read each
of the same statistics with `.item()`. Each round times every variant once, in an order of its own;
figures are medians over rounds, ratios are taken within a round.
"""

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.activations import BlockMLP, ResNet18, Settings, measure
from models.digits import DigitsNet
from training import observed
from training.layers import matching

__all__ = ["NETWORKS", "VARIANTS", "Network", "main", "render", "run"]

PLAIN, OBSERVED, NAIVE = "no hooks", "observed", "naive hooks"
VARIANTS: Final = (PLAIN, OBSERVED, NAIVE)


class DigitLogits(DigitsNet):
    """The digits network without its softmax, as it is trained."""

    def forward(self, image: Tensor) -> Tensor:
        """Map image, float32 [rows, 8, 8], to logits, float32 [rows, 10]."""
        return self.logits(image)


@dataclass(frozen=True)
class Network:
    """A network and a batch of inputs for it.

    Attributes:
        title: as in the table.
        build: makes it; its output is scores, [rows, classes].
        shape: of the batch.
        layers: patterns of the layers that are observed.
    """

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layers: tuple[str, ...] = ("*",)


_IMAGES: Final = (8, 3, 112, 112)
NETWORKS: Final[Mapping[str, Network]] = {
    "mlp": Network("8-block MLP, batch 64", BlockMLP, (64, 16)),
    "digits": Network("digits CNN, batch 64", DigitLogits, (64, 8, 8)),
    "resnet18-relus": Network(
        "ResNet-18 shape, batch 8, 3×112×112, ReLUs and head",
        ResNet18,
        _IMAGES,
        ("type:ReLU", "head"),
    ),
    "resnet18": Network("ResNet-18 shape, batch 8, 3×112×112", ResNet18, _IMAGES),
}


def run(network: Network, settings: Settings) -> tuple[int, dict[str, list[float]]]:
    """Time the variants.

    Returns:
        How many layers are observed, and milliseconds per step by variant, one for each round.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model, batch = network.build().train(), torch.randn(network.shape)
    plain, own, naive = (copy.deepcopy(model) for _ in range(3))
    _hook(naive, set(matching(naive, network.layers).values()))
    steps = {PLAIN: _stepper(plain, batch), NAIVE: _stepper(naive, batch)}
    with observed(own, network.layers) as training:
        own(batch)
        seen = training.step().activations
        steps[OBSERVED] = _stepper(own, batch, training.step)
        times = measure({name: steps[name] for name in VARIANTS}, settings)
    return len(seen.layers) if seen else 0, times


def _stepper(
    model: nn.Module, batch: Tensor, after: Callable[[], Any] = lambda: None
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    labels = torch.arange(len(batch)) % 10

    def step() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            optimizer.zero_grad()
            cross_entropy(model(batch), labels).backward()
            after()
            optimizer.step()

    return step


def _hook(model: nn.Module, names: set[str]) -> None:
    for name, layer in model.named_modules():
        if name in names:
            layer.register_forward_hook(_naive_hook)


def _naive_hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
    _read(output)
    output.register_hook(_read)


def _read(tensor: Tensor) -> None:
    tensor.mean().item()
    tensor.std().item()
    tensor.min().item()
    tensor.max().item()
    (tensor == 0).float().mean().item()
    (~torch.isfinite(tensor)).sum().item()


def render(name: str, layers: int, times: Mapping[str, Sequence[float]]) -> str:
    """Return a network's line of the table."""
    plain = np.array(times[PLAIN])
    cells = [NETWORKS[name].title, str(layers)]
    for variant in VARIANTS:
        own = np.array(times[variant])
        ratio = f" (×{np.median(own / plain):.2f})" if variant != PLAIN else ""
        cells.append(f"{np.median(own):.2f}{ratio}")
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark training", description="What observing costs a step of training."
    )
    parser.add_argument(
        "--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME"
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    parser.add_argument("--least-ms", type=float, default=20.0, metavar="MS")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    options = parser.parse_args(arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        print(f"Milliseconds per step, medians over {options.rounds} rounds.\n")
        print(f"| network | layers | {' | '.join(VARIANTS)} |\n|---|---|---|---|---|")
        for name in options.networks:
            settings = Settings(rounds=options.rounds, least_ms=options.least_ms)
            print(render(name, *run(NETWORKS[name], settings)), flush=True)
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
