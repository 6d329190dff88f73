"""What the C++ program compares with: inputs of an exported model, and what Python makes of them.

Written by `torch.save` as plain lists, dicts and tensors, which `torch::jit::pickle_load` reads.
"""

import copy
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import OBSERVE, set_mode
from export.archive import MODULE_FILE
from export.definition import Definition
from export.inputs import Example
from export.pipeline import Exported, eager_answers
from export.tensors import TOLERANCE, leaves
from formats.layers import Layers
from formats.observation import STATISTICS
from formats.structure import flatten
from models.gradient_reversal import GradientReversal


@dataclass(frozen=True)
class Cases:
    """A model for C++: the saved module, and the document that goes with it."""

    model: Path
    document: dict[str, Any]

    def write(self, path: Path) -> Path:
        """Write the document where C++ reads it."""
        torch.save(self.document, path)
        return path

    @property
    def summary(self) -> str:
        """How much there is to compare, in the program's words."""
        cases, gradients = self.document["cases"], self.document["gradients"]
        return (
            f"{self.document['model']}: {len(cases)} inputs, "
            f"{sum(len(one['outputs']) for one in cases)} outputs, "
            f"{sum(len(one['vectors']) for one in cases)} statistics vectors, "
            f"{len(gradients)} gradients, {sum('unreversed' in one for one in gradients)} reversed;"
        )


def cases_of(definition: Definition, exported: Exported, folder: Path) -> Cases:
    """Unpack an exported model into `folder` and write down what Python makes of its inputs."""
    with zipfile.ZipFile(exported.archive) as archive:
        archive.extractall(folder)
    _, eager = eager_answers(definition)
    loaded = torch.jit.load(str(folder / MODULE_FILE))
    chosen = [layer for layer in Layers.read(folder).hooked if layer.chosen]
    set_mode(loaded, chosen, STATISTICS)
    document: dict[str, Any] = {
        "model": definition.name,
        "tolerance": TOLERANCE,
        "layers": [layer.name for layer in chosen],
        "cases": [
            {"inputs": list(case), "outputs": answers, **_observed(loaded, case)}
            for case, answers in zip(eager.cases, eager.answers, strict=True)
        ],
        "gradients": [],
    }
    if any(tensor.is_floating_point() for tensor in eager.cases[0]):
        document["gradients"] = [
            one for case in eager.cases for one in _gradients(definition.module, case)
        ]
    return Cases(folder / MODULE_FILE, document)


def _observed(loaded: Any, case: Example) -> dict[str, list[Tensor]]:
    with torch.no_grad():
        _, codes, found = getattr(loaded, OBSERVE)(*(tensor.clone() for tensor in case))
    return {
        "codes": [torch.tensor(numbers, dtype=torch.int64) for numbers in codes],
        "vectors": [vector for layer in found for vector in layer],
    }


def _gradients(module: nn.Module, case: Example) -> list[dict[str, list[Tensor]]]:
    """Differentiate all outputs together and, behind a reversal layer, its output alone."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = [leaf for _, leaf in leaves(module(*(tensor.clone() for tensor in case)))]
    weights = [
        torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in outputs
    ]
    together = {
        "inputs": list(case),
        "projections": weights,
        "gradients": _gradient(module, case, weights),
    }
    if not hasattr(module, "reversal"):
        return [together]
    # What the layer stands for, from a network that has none: the gradient times -alpha.
    reversal = module.reversal
    assert isinstance(reversal, GradientReversal)
    plain = copy.deepcopy(module)
    plain.reversal = nn.Identity()
    behind = [torch.zeros_like(weights[0]), weights[1]]
    unreversed = _gradient(plain, case, behind)
    return [
        together,
        {
            "inputs": list(case),
            "projections": behind,
            "gradients": [-reversal.alpha * gradient for gradient in unreversed],
            "unreversed": unreversed,
        },
    ]


def _gradient(module: Callable[..., Any], case: Example, projections: list[Tensor]) -> list[Tensor]:
    inputs = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in case]
    outputs = [leaf for _, leaf in flatten(module(*inputs))]
    total = sum(
        (output.double() * projection).sum()
        for output, projection in zip(outputs, projections, strict=True)
        if output.requires_grad
    )
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return list(torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True))
