"""Rows that disturb each other in ways that a shallow measurement does not meet."""

import pytest
import torch
from torch import Tensor, nn

from export.pipeline import export_model
from export.rounding import Rounding
from export.tensors import compare
from tests.networks import define


class Scored(nn.Module):
    """Two layers for others to build on; float32 [rows, 8] to [rows, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)


class Masked(Scored):
    """Rows are ranked among each other, beside a column that is huge."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y = y - y.mean(0, keepdim=True)
        return y.masked_fill(torch.arange(8) == 3, -1e9)


class Rare(Scored):
    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        if bool((x.abs() > 40).any()):
            y = y - y.mean(0, keepdim=True)
        return y


class Crowded(Scored):
    """An expert takes 40 rows at most: the others get nothing."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        first = y[:, 0] > y[:, 1]
        place = first.to(torch.int64).cumsum(0)
        return y * (~first | (place <= 40)).to(y.dtype).unsqueeze(1)


class Minus(Scored):
    """Negative infinity spoils everybody."""

    def forward(self, x: Tensor) -> Tensor:
        spoilt = bool((x == float("-inf")).any())
        return self.one(x) + (1.0 if spoilt else 0.0)


class Last(Scored):
    """A NaN in the last column spoils everybody."""

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + x[:, -1].isnan().any().to(x.dtype)


@pytest.mark.parametrize("kind", [Masked, Rare, Crowded, Minus, Last])
def test_company_is_found_to_matter(kind, tmp_path):
    torch.manual_seed(0)
    batching = export_model(define(kind, torch.randn(4, 8)), tmp_path).certificate.batching
    assert not batching.independent
    assert "a row's answer changed" in batching.reason


class Long(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True) if x.size(1) > 20 else x * 2


def test_rows_of_every_shape_are_tried(tmp_path):
    definition = define(Long, torch.randn(3, 5), torch.randn(3, 30))
    batching = export_model(definition, tmp_path).certificate.batching
    assert not batching.independent
    assert "rows of an input" in batching.reason


class Large(Scored):
    """Values of a million, whose low digits are rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.one(x) + 1e3) * 1e3


def test_rounding_is_not_taken_for_company(tmp_path):
    batching = export_model(define(Large, torch.randn(4, 8)), tmp_path).certificate.batching
    assert batching.independent


def test_rounding_is_measured_value_by_value():
    module = define(Masked, torch.randn(4, 8)).module
    x = torch.randn(4, 8)
    with torch.no_grad():
        expected = [module(x)]
    noise = Rounding(module)
    [moved] = noise((x,))
    assert moved.shape == (4, 8)
    others = [column for column in range(8) if column != 3]
    assert 0 < moved[:, others].max() < 1e-5
    shifted = [expected[0].clone()]
    shifted[0][0, 0] += 1e-3
    assert not compare(expected, shifted, ["y"], lambda: noise((x,))).equal
    # A share of the largest value would have allowed that.
    assert compare(expected, shifted, ["y"]).equal
