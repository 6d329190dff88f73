"""Modules that remember, each in another place."""

import math

import pytest
import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.pipeline import export_model
from tests.networks import define


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = [1]

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return x + 1.0 if len(self.seen) < 900 else x + 2.0


class Dicts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.seen["calls"] += 1
        return x * 2


class Now(nn.Module):
    """Writes for one input in millions, which no search finds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hit", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.hit.add_((x == 0.375).any().to(x.dtype))
        return x + self.hit


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Lists, "the module changes 'seen'"),
        (Dicts, "the module changes 'seen'"),
        (Now, "the module writes to its own 'hit'"),
    ],
)
def test_state_is_refused(kind, words, tmp_path):
    with pytest.raises(ExportError, match=words):
        export_model(define(kind, torch.rand(3, 4) + 1), tmp_path)


class Kept(nn.Module):
    """Has containers and buffers, and writes to tensors of its own making only."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [1, 2]
        self.names = {"a": 1.5}
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.table
        y.add_(self.sizes[1])
        rows = self.table.clone()
        rows[0] = 7.0
        return self.norm(y) * self.names["a"] + rows


def test_what_only_reads_is_no_state(tmp_path):
    assert export_model(define(Kept, torch.randn(3, 4)), tmp_path).certificate.batching.independent


class Sloppy(nn.Module):
    """`x.item()` of a negative number: Python's square root raises, TorchScript's does not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + math.sqrt(float(x.sum()))


def test_an_answer_where_the_module_raises_is_on_record(tmp_path):
    notes = export_model(define(Sloppy, torch.ones(2, 3)), tmp_path).certificate.notes
    [note] = [note for note in notes if "the saved graph answers" in note]
    assert "do not rely on an error there; one is x float32" in note


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def test_gradients_of_an_ordinary_network_hold(tmp_path):
    certificate = export_model(define(Perceptron, torch.randn(3, 4)), tmp_path).certificate
    assert all(check.passed for check in certificate.checks)
    assert certificate.notes == ()


class Positions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).nonzero()


def test_a_shape_that_depends_on_values_is_free(tmp_path):
    signature = export_model(define(Positions, torch.randn(3, 4)), tmp_path).signature
    assert signature.outputs[0].shape == (-1, 2)
