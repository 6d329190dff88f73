"""Attributions of a score to the elements of the inputs, by captum.

Saliency: Simonyan et al., arXiv 1312.6034. Input times gradient: Shrikumar et al.,
arXiv 1605.01713.
Integrated gradients: Sundararajan et al., arXiv 1703.01365.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from handlers.errors import RequestError
from handlers.explain import INPUT_X_GRADIENT, INTEGRATED_GRADIENTS, SALIENCY, Explanation
from handlers.faults import differentiating

__all__ = ["attribute"]


def attribute(
    explanation: Explanation,
    score: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    others: Sequence[Tensor],
    most_rows: int,
) -> tuple[list[Tensor], Tensor | None]:
    """Attribute a score to the elements of some inputs.

    Args:
        explanation: the method, and its steps and baseline.
        score: takes `inputs`, then `others`, and returns one number for each row.
        inputs: floating-point tensors whose axis 0 counts rows.
        others: what is passed on with them, with the same rows.
        most_rows: how many rows may run together; at least those of the inputs.

    Returns:
        For each input a tensor of its shape, and, of integrated gradients, how far they fall
        short of adding up to the score less that of the baseline, for each row.

    Raises:
        ModelError, RequestError: the model or its backward pass failed, or captum is missing.
    """
    methods = _captum()
    method = methods[explanation.method](score)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    arguments = {"additional_forward_args": tuple(others)}
    with differentiating():
        if explanation.method != INTEGRATED_GRADIENTS:
            return list(method.attribute(leaves, **arguments)), None
        found, delta = method.attribute(
            leaves,
            baselines=tuple(explanation.baseline for _ in leaves),
            n_steps=explanation.steps,
            internal_batch_size=most_rows,
            return_convergence_delta=True,
            **arguments,
        )
        return list(found), delta


def _captum() -> dict[str, Any]:
    # A second to load, and seldom needed; an archive runs where it is not installed.
    try:
        from captum.attr import InputXGradient, IntegratedGradients, Saliency
    except ImportError:
        raise RequestError(
            "not_available",
            "attributions are computed by captum, which is not installed in this server",
            status=501,
            expected="captum 0.9, or the method gradient_flow",
        ) from None
    return {
        SALIENCY: Saliency,
        INPUT_X_GRADIENT: InputXGradient,
        INTEGRATED_GRADIENTS: IntegratedGradients,
    }
