"""Gradient reversal layer: the identity forward, the gradient times -alpha backward.

Ganin & Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015
(arXiv 1409.7495). The usual form is an `autograd.Function`; TorchScript compiles one but cannot
save it, so `GradientReversal` is made with `models/gradients.py`. The Function stays here as the
reference that the tests compare with.

`torch.jit.freeze` drops `detach`, and the sign of the gradient then changes without a warning:
take gradients on the graph that was not frozen. The forward value is the same in both.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.gradients import with_gradient_of


class GradientReversal(nn.Module):
    """Identity whose gradient is `-alpha * g` for an incoming gradient `g`.

    The input is a floating-point tensor of any shape; the output has the same shape, dtype and
    bits (infinities, NaN and the sign of zero included).

    `alpha` (at least 0) is an attribute and can be set between steps, in TorchScript too.
    """

    alpha: float

    def __init__(self, alpha: float = 1.0) -> None:
        """Reverse with strength `alpha`; ValueError if it is negative or not finite."""
        super().__init__()
        if not 0.0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be finite and at least 0, not {alpha}")
        self.alpha = float(alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` unchanged; its gradient is reversed and scaled by alpha."""
        return with_gradient_of(x, -self.alpha * x)


class GradientReversalFunction(torch.autograd.Function):
    """The tutorial's form of the layer, `apply(x, alpha)`: a reference, not for export."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        """Return a view of `x`, any shape and dtype, and remember `alpha`."""
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        """Return `-alpha * g` for `x` and nothing for `alpha`."""
        return -ctx.alpha * grads[0], None
