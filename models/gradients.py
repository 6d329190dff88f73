"""Building blocks whose gradient is not that of what they compute, for models to be scripted.

A custom gradient is usually an `autograd.Function`; TorchScript compiles one but cannot save it.
`with_gradient_of` says "forward f, backward as g" without one, and everything here and in
`models/gradient_reversal.py` is made with it: exact forward, saved and loaded with its gradient, in
Python and in C++.

`torch.jit.freeze` drops `detach`, and the gradient then changes without a warning: take gradients
on the graph that was not frozen. The forward value is the same in both.
"""

import torch
from torch import Tensor, nn

__all__ = [
    "GradientScaling",
    "StraightThroughArgmax",
    "StraightThroughRound",
    "StraightThroughSign",
    "with_gradient_of",
]


def with_gradient_of(value: Tensor, carrier: Tensor) -> Tensor:
    """Return the bits of `value` with the gradient of `carrier`.

    It is `value.detach() + (carrier - carrier.detach())` without the arithmetic, which would turn
    infinities into NaN and -0.0 into 0.0. No gradient reaches `value`.

    Args:
        value: any tensor.
        carrier: a floating-point tensor of the same shape and dtype.

    Returns:
        A tensor of that shape and dtype. An incoming gradient reaches `carrier` unchanged, where
        elements are infinite or NaN as well.
    """
    # A copy, because the backward of some functions reads their own output again.
    result = carrier.clone()
    # Detached, it shares the memory of the result and hides the writing from autograd.
    result.detach().copy_(value)
    return result


class GradientScaling(nn.Module):
    """Identity whose gradient is `factor * g` for an incoming gradient `g`.

    The input is a floating-point tensor of any shape; the output has the same shape, dtype and
    bits. A factor between 0 and 1 slows a part of a network down, 0 stops its training. The same
    with a negative factor is gradient reversal (Ganin & Lempitsky, "Unsupervised Domain Adaptation
    by Backpropagation", ICML 2015, arXiv 1409.7495).

    `factor` is an attribute and can be set between steps, in TorchScript too.
    """

    factor: float

    def __init__(self, factor: float = 1.0) -> None:
        """Scale by `factor`; ValueError if it is not finite."""
        super().__init__()
        if not abs(factor) < float("inf"):
            raise ValueError(f"factor must be finite, not {factor}")
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` unchanged; its gradient is scaled."""
        return with_gradient_of(x, self.factor * x)


class StraightThroughRound(nn.Module):
    """`torch.round` (halves to even) whose gradient is that of the identity.

    The input is a floating-point tensor of any shape; the output has the same shape and dtype.
    The straight-through estimator: Bengio, Léonard & Courville, "Estimating or Propagating
    Gradients Through Stochastic Neurons for Conditional Computation", 2013, arXiv 1308.3432.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `torch.round(x)`; an incoming gradient passes unchanged."""
        return with_gradient_of(torch.round(x), x)


class StraightThroughSign(nn.Module):
    """`torch.sign` whose gradient is `g` where `abs(x) <= limit`, and 0 elsewhere.

    The input is a floating-point tensor of any shape; the output has the same shape and dtype,
    with values -1, 0 and 1. The gradient is that of hard tanh: Hubara et al., "Binarized Neural
    Networks", NeurIPS 2016, arXiv 1602.02830. With an infinite limit it passes unchanged
    everywhere but at NaN, as in Bengio, Léonard & Courville, 2013, arXiv 1308.3432.
    """

    limit: float

    def __init__(self, limit: float = 1.0) -> None:
        """Pass gradients up to `limit`; ValueError unless it is positive."""
        super().__init__()
        if not limit > 0.0:
            raise ValueError(f"limit must be positive, not {limit}")
        self.limit = float(limit)

    def forward(self, x: Tensor) -> Tensor:
        """Return `torch.sign(x)`; an incoming gradient passes within the limit."""
        return with_gradient_of(torch.sign(x), torch.clamp(x, -self.limit, self.limit))


class StraightThroughArgmax(nn.Module):
    """A one-hot argmax along one axis, whose gradient is that of `softmax(x / temperature)`.

    The input is a floating-point tensor of any shape with at least one axis; the output has the
    same shape and dtype, 1 at the argmax and 0 elsewhere. Of equal elements `torch.argmax` chooses.
    An element that is infinite or NaN gets no gradient, so -inf masks it. The straight-through
    Gumbel-softmax without its noise: Jang, Gu & Poole, "Categorical Reparameterization with
    Gumbel-Softmax", ICLR 2017, arXiv 1611.01144.
    """

    dim: int
    temperature: float

    def __init__(self, dim: int = -1, temperature: float = 1.0) -> None:
        """Choose along `dim`; ValueError unless `temperature` is positive and finite."""
        super().__init__()
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, not {temperature}")
        self.dim = dim
        self.temperature = float(temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Return the one-hot argmax; an incoming gradient passes through the softmax."""
        hot = torch.zeros_like(x).scatter_(self.dim, x.argmax(self.dim, keepdim=True), 1.0)
        # Infinity minus infinity would make the whole softmax NaN.
        soft = torch.softmax(torch.nan_to_num(x / self.temperature), self.dim)
        return with_gradient_of(hot, soft)
