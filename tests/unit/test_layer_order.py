"""Layers are described in execution order, whichever example reaches them first."""

import pytest
import torch
from torch import nn

from export.definition import from_model_file
from export.layers import describe
from tests.conftest import ROOT


class Ways(nn.Module):
    """Runs the layers of the way that its input names."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.ways = ways
        for name in sorted(set("".join(ways))):
            self.add_module(name, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.ways[int(x)]:
            x = self.get_submodule(name)(x)
        return x


def order(module, cases, names=None):
    names = names or [name for name, _ in module.named_children()]
    layers = describe(module, names, set(), cases, row_axis=False, independent=False)
    return [layer.name for layer in layers]


@pytest.mark.parametrize(
    ("ways", "wanted"),
    [
        (["abd", "acd"], "abcd"),
        (["ad", "abcd"], "abcd"),
        (["bd", "ac", "cb"], "acbd"),
        # A layer that runs twice stands where it runs first.
        (["abab", "ac", "cb"], "acb"),
        # What contradicts itself keeps the order in which it was seen.
        (["ba", "ab"], "ba"),
        (["cba", "ab", "xc"], "xcba"),
    ],
)
def test_the_orders_of_several_ways_are_merged(ways, wanted):
    cases = [(torch.tensor(float(number)),) for number in range(len(ways))]
    assert "".join(order(Ways(*ways), cases)) == wanted


def test_what_no_case_reaches_comes_last():
    assert order(Ways("ac", "b"), [(torch.tensor(0.0),)]) == ["a", "c", "b"]


def test_both_sides_of_the_examples_branch_stand_before_what_follows():
    definition = from_model_file(ROOT / "models" / "control_flow.py")
    assert order(definition.module, definition.examples) == ["fc1", "relu", "tanh", "fc2"]
