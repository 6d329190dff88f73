"""A network of ResNet-18's shape with random weights: one image a request."""

import torch
from torch import Tensor, nn

from benchmarks.activations import BasicBlock, ResNet18

VERSION = "1.0"
INPUTS = {"image": {"shape": [-1, 3, 224, 224]}}
OUTPUTS = ["scores"]
SEED = 0


def build() -> nn.Module:
    """Return the module in eval mode; its weights are always those of `SEED`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        model = ResNet18().eval()
    # Each block adds little to what passes it by, as in a trained network: with weights as drawn,
    # numbers would double from block to block.
    for block in model.blocks:
        assert isinstance(block, BasicBlock)
        nn.init.constant_(block.norm2.weight, 0.2)
    return model


def examples() -> list[tuple[Tensor, ...]]:
    """Return standard normal images, float32 [rows, 3, 224, 224], rows 1 and 2."""
    generator = torch.Generator().manual_seed(SEED)
    return [(torch.randn(rows, 3, 224, 224, generator=generator),) for rows in (1, 2)]
