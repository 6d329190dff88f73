"""The graph that has gradients: the file's own, which was not frozen.

Freezing drops `detach`, and with it every custom gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine import set_mode, unoptimized
from formats.layers import Layer
from formats.observation import GRADIENT, OFF, Recorded, read
from formats.structure import answered
from handlers.faults import guarded

__all__ = ["Differentiable", "Run"]


@dataclass(frozen=True)
class Run:
    """A forward pass that can be differentiated.

    Attributes:
        outputs: the model's, in the signature's order, each with its gradient history.
        records: what the tensors of `layers` belong to.
        layers: outputs of the hooked layers.
    """

    outputs: list[Tensor]
    records: list[Recorded]
    layers: list[Tensor]


class Differentiable:
    """A module, and the outputs of its layers, as functions of its inputs.

    Args:
        module: a loaded ScriptModule, in evaluation mode; its hooks are off between calls.
        layers: those that hooks are compiled into; none for a module without.
        paths: of its outputs, in the signature's order.
    """

    def __init__(self, module: Any, layers: Sequence[Layer], paths: Sequence[str]) -> None:
        self._module = module
        self._layers = layers
        self._paths = paths

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the module with gradients; the inputs are not written to.

        Raises:
            ModelError, RequestError: as `Model.run` does.
        """
        return self._in_order(self._run(self._module, inputs))

    def observe(self, inputs: Sequence[Tensor]) -> Run:
        """Run the module with gradients, and keep what each hooked layer put out.

        Raises:
            ModelError, RequestError: as `Model.run` does.
        """
        if not self._layers:
            return Run(self(inputs), [], [])
        set_mode(self._module, self._layers, GRADIENT)
        try:
            result, codes, found = self._run(self._module.observe, inputs)
        finally:
            set_mode(self._module, [], OFF)
        outputs = [tensor for layer in found for tensor in layer]
        return Run(self._in_order(result), read(self._layers, codes, GRADIENT), outputs)

    def _run(self, function: Any, inputs: Sequence[Tensor]) -> Any:
        # Copies: a leaf that is differentiated may not be written to, and a model may do that.
        with torch.enable_grad(), unoptimized(), guarded():
            return function(*(tensor.clone() for tensor in inputs))

    def _in_order(self, result: Any) -> list[Tensor]:
        by_path = dict(answered(result))
        return [by_path[path] for path in self._paths]
