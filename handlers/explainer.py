"""One explanation: which value, what the inputs have to do with it, and how the gradient flows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from formats.gradient import Gradients, gradient_flow
from handlers.attribution import attribute
from handlers.batch import split
from handlers.decode import Question
from handlers.errors import RequestError
from handlers.explain import FLOW, INTEGRATED_GRADIENTS, Explanation
from handlers.gradient_flow import flow
from handlers.model import Model, to_numpy
from handlers.target import Targets, choose_targets
from handlers.values import Array

__all__ = ["Explained", "explain"]

_MOST_POINTS: Final = 20_000
"""The most rows that one explanation may run and differentiate."""


@dataclass(frozen=True)
class Explained:
    """What was found for one request.

    Attributes:
        explanation: what was asked.
        targets: for each row, the index of the explained value.
        scores: that value, float64 [rows].
        attributions: by input name, of the input's shape; empty for gradient flow alone.
        delta: convergence delta of integrated gradients, float64 [rows], or None.
        gradients: at the layers; None for a model without hooks.
    """

    explanation: Explanation
    targets: Targets
    scores: Array
    attributions: dict[str, Array]
    delta: Array | None
    gradients: Gradients | None


def explain(model: Model, question: Question, explanation: Explanation) -> Explained:
    """Explain one request's answer.

    Args:
        model: the model.
        question: the request.
        explanation: what is to be explained.

    Raises:
        ModelError: the model raised.
        RequestError: there is no such target, no gradient, or too much to compute.
    """
    _check_size(question.rows, explanation)
    signature = model.signature
    spec = signature.outputs[explanation.output]
    inputs = model.tensors(question.arrays)
    leaves = [
        tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
        for tensor in inputs
    ]
    run = model.differentiable.observe(leaves)
    output = run.outputs[explanation.output]
    values = split([to_numpy(output)], [question], signature.row_axis)[0][0]
    targets = choose_targets(explanation.target, _by_row(values, signature.row_axis), spec)
    places = _places(targets, values.shape[1:] if signature.row_axis else values.shape)
    scores = _pick(output if signature.row_axis else output.unsqueeze(0), places)
    wanted = [tensor for tensor in leaves if tensor.requires_grad]
    layers, arrived = flow(scores.sum(), wanted, run, explanation.layers, question.rows)
    attributions: dict[str, Array] = {}
    delta = None
    if explanation.method != FLOW:
        if all(gradient is None for gradient in arrived):
            raise RequestError(
                "not_differentiable",
                f"output {spec.name!r} does not depend on the inputs in a way that has a gradient",
                expected="an output that is computed from them by differentiable operations",
            )
        found, delta = _Scores(model, explanation, places).attribute(inputs)
        names = [
            one.name
            for one, leaf in zip(signature.inputs, leaves, strict=True)
            if leaf.requires_grad
        ]
        attributions = dict(zip(names, map(to_numpy, found), strict=True))
    return Explained(
        explanation,
        targets,
        to_numpy(scores.double()),
        attributions,
        None if delta is None else to_numpy(delta.double()),
        gradient_flow(spec.name, layers) if model.layers else None,
    )


class _Scores:
    """The explained values as a function of the floating-point inputs, as captum wants it.

    Axis 0 of everything counts rows, also where the model itself knows none.
    """

    def __init__(self, model: Model, explanation: Explanation, places: Tensor) -> None:
        self._model = model
        self._module = model.differentiable
        self._row_axis = model.signature.row_axis
        self._explanation = explanation
        self._places = places
        self._floats: list[bool] = []

    def attribute(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Return an attribution for each floating-point input, and the convergence delta."""
        given = inputs if self._row_axis else [tensor.unsqueeze(0) for tensor in inputs]
        self._floats = [tensor.is_floating_point() for tensor in given]
        rows = len(self._places)
        batching = self._model.certificate.batching
        # Rows that may influence each other only ever run in the company they came in.
        most = max(rows, batching.max_rows) if batching.independent else rows
        found, delta = attribute(
            self._explanation,
            self,
            [tensor for tensor in given if tensor.is_floating_point()],
            [*(tensor for tensor in given if not tensor.is_floating_point()), self._places],
            most,
        )
        return (found if self._row_axis else [tensor.squeeze(0) for tensor in found]), delta

    def __call__(self, *given: Tensor) -> Tensor:
        """Return one score for each row of the floating-point inputs, the others and places."""
        *tensors, places = given
        count = sum(self._floats)
        first, others = iter(tensors[:count]), iter(tensors[count:])
        inputs = [next(first if is_float else others) for is_float in self._floats]
        output = self._explanation.output
        if self._row_axis:
            values = self._module(inputs)[output]
        else:
            rows = zip(*inputs, strict=True)
            values = torch.stack([self._module(row)[output] for row in rows])
        # Adds nothing; but an input that the score does not depend on then has a gradient, zero.
        nothing = [tensor.reshape(len(tensor), -1)[:, :0].sum(1) for tensor in tensors[:count]]
        return _pick(values, places) + torch.stack(nothing).sum(0)


def _check_size(rows: int, explanation: Explanation) -> None:
    steps = explanation.steps if explanation.method == INTEGRATED_GRADIENTS else 1
    if rows * steps > _MOST_POINTS:
        raise RequestError(
            "explanation_too_large",
            f"{rows} rows with {steps} steps are {rows * steps} gradients",
            expected=f"at most {_MOST_POINTS}; send fewer rows, or ask for fewer steps",
        )


def _by_row(values: Array, row_axis: bool) -> Array:
    return values if row_axis else values[np.newaxis]


def _places(targets: Targets, shape: Sequence[int]) -> Tensor:
    """Return int64 [rows]: where each target is in its row, the row's axes taken as one."""
    return torch.tensor([int(np.ravel_multi_index(one, shape)) if shape else 0 for one in targets])


def _pick(output: Tensor, places: Tensor) -> Tensor:
    """Return [rows]: the value of each row at its place."""
    at = places.to(output.device).unsqueeze(1)
    return output.reshape(len(output), -1).gather(1, at).squeeze(1)
