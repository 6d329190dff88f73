"""Gradient flow: the gradient of a score with respect to what each layer put out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.statistics import inspect_rows, summarise_rows
from formats.observation import Recorded, merge_gradient
from formats.statistics import GradientStatistics, LayerRecord
from handlers.differentiable import Run
from handlers.faults import differentiating
from handlers.observe import to_lists

__all__ = ["flow"]


def flow(
    score: Tensor, inputs: Sequence[Tensor], run: Run, chosen: frozenset[str], rows: int
) -> tuple[dict[str, LayerRecord[GradientStatistics]], list[Tensor | None]]:
    """Differentiate a score with respect to what the layers put out, and to the inputs.

    Args:
        score: a scalar of the run.
        inputs: those of the run that are differentiated.
        run: the forward pass; it cannot be differentiated again.
        chosen: names of the layers whose gradients are wanted.
        rows: how many rows it had.

    Returns:
        The gradients at the layers by activation key, without the layers that the score does not
        depend on; and at the inputs, None where it does not depend on one.

    Raises:
        RequestError: the backward pass failed.
    """
    wanted = [
        (record, run.layers[record.first])
        for record in run.records
        if record.layer.name in chosen and run.layers[record.first].requires_grad
    ]
    tensors = [*inputs, *(tensor for _, tensor in wanted)]
    found: Sequence[Tensor | None] = [None] * len(tensors)
    if tensors and score.requires_grad:
        with differentiating():
            found = torch.autograd.grad(score, tensors, allow_unused=True)
    layers = {
        record.key: _record(record, gradient, rows)
        for (record, _), gradient in zip(wanted, found[len(inputs) :], strict=True)
        if gradient is not None
    }
    return layers, list(found[: len(inputs)])


def _record(record: Recorded, gradient: Tensor, rows: int) -> LayerRecord[GradientStatistics]:
    # In double precision the square of a small gradient is no zero.
    values = gradient.abs() if gradient.is_complex() else gradient
    values = values.double()
    found: list[Tensor] = []
    facts: list[int] = []
    summarise_rows(values, record.axis, found, facts)
    inspect_rows(values, record.axis, found, [])
    units, count = facts
    *vectors, zeros, strange = to_lists([found])
    share = units // rows

    def statistics(own: range) -> GradientStatistics:
        counts = int(sum(zeros[own.start : own.stop])), int(sum(strange[own.start : own.stop]))
        return merge_gradient(vectors, count, own, counts)

    each: tuple[GradientStatistics, ...] = ()
    if record.axis >= 0 and rows > 1:
        each = tuple(statistics(range(row * share, (row + 1) * share)) for row in range(rows))
    return LayerRecord(statistics(range(units)), each)
