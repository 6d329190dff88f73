"""A frozen graph given to oneDNN: blocked memory formats, and weights packed for them."""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch

__all__ = ["optimize"]

_RELU: Final = ("aten::relu", "aten::relu_")


def optimize(frozen: Any, methods: Sequence[str] = ()) -> Any:
    """Rewrite a frozen module in place for oneDNN, on the CPU.

    Args:
        frozen: from `plain_graph` or `observed_graph`; nothing else may hold it.
        methods: those to rewrite beside `forward`.

    Returns:
        The same module. Where the graph has nothing for oneDNN it is left almost as it was.

    Raises:
        RuntimeError: torch's pass fails on this graph.
    """
    for graph in (frozen.graph, *(getattr(frozen, method).graph for method in methods)):
        _keep_nan(graph)
    # What `torch.jit.optimize_for_inference` does to a module that is frozen already.
    torch._C._jit_pass_optimize_for_inference(frozen._c, list(methods))
    return frozen


def _keep_nan(graph: Any) -> None:
    """Write ReLU as a clamp: oneDNN's own ReLU turns NaN into 0, and hides a broken model."""
    for kind in _RELU:
        for node in graph.findAllNodes(kind, recurse=True):
            with graph.insert_point_guard(node):
                bounds = [graph.insertConstant(bound) for bound in (0.0, math.inf)]
                clamp = graph.insertNode(
                    graph.create("aten::clamp", [next(iter(node.inputs())), *bounds], 1)
                )
            clamp.output().setType(node.output().type())
            node.output().replaceAllUsesWith(clamp.output())
            node.destroy()
