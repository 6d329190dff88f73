"""Frozen TorchScript graphs of a module that may have hooks compiled in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from formats.layers import Layer
from formats.observation import OFF, STATISTICS

__all__ = [
    "OBSERVE",
    "PREFIX",
    "SUMMARY",
    "observed_graph",
    "plain_graph",
    "set_mode",
    "unoptimized",
]

PREFIX: Final = "_vitrine_"
"""How the names of attributes and methods that belong to a compiled hook begin."""

OBSERVE: Final = "observe"
"""The method of a hooked module: its inputs → (outputs, codes, vectors); see `formats`."""

SUMMARY: Final = "summary"
"""The same with all vectors joined into one: a single tensor to bring to the host."""


def plain_graph(module: Any) -> Any:
    """Freeze a module for answers only: hooks that are OFF leave nothing behind.

    Args:
        module: a loaded ScriptModule; stays as it is. Gradients are right on it alone, because
            freezing drops `detach`.

    Returns:
        A frozen module. Its weights are those of `module`, but for convolutions that a batch norm
        was folded into.
    """
    return _frozen(module, [])


def observed_graph(module: Any, layers: Sequence[Layer], plain: Any = None) -> Any:
    """Freeze a module with statistics of some layers; call its `summary`.

    Args:
        module: a loaded ScriptModule with hooks compiled in; its hooks are OFF at the end.
        layers: those to take statistics of.
        plain: the module's plain graph, to share with it what both had folded.
    """
    set_mode(module, layers, STATISTICS)
    try:
        observed = _frozen(module, [SUMMARY])
    finally:
        set_mode(module, [], OFF)
    if plain is not None:
        _share_constants(observed.forward.graph, plain.graph)
        _share_constants(getattr(observed, SUMMARY).graph, plain.graph)
    return observed


@contextmanager
def unoptimized() -> Iterator[None]:
    """Run the operations of a graph one by one in this context, without compiling them.

    TorchScript's optimisations merge operations, and with them the values in between whose
    gradient is wanted; and a graph that seldom runs is done before it would be compiled.
    """
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        yield


def set_mode(module: Any, layers: Sequence[Layer], mode: int) -> None:
    """Set the mode of some layers of a hooked module, and OFF for all others.

    Args:
        module: a ScriptModule with hooks compiled in.
        layers: which layers.
        mode: one of the modes in `formats.observation`.
    """
    wanted = {layer.name for layer in layers}
    for name, layer in module.named_modules():
        if hasattr(layer, f"{PREFIX}mode"):
            setattr(layer, f"{PREFIX}mode", mode if name in wanted else OFF)
            # What the last call recorded may hold a whole graph of gradients.
            setattr(layer, f"{PREFIX}found", [])
        if hasattr(layer, f"{PREFIX}open"):
            setattr(layer, f"{PREFIX}open", bool(wanted))


def _frozen(module: Any, methods: list[str]) -> Any:
    frozen: Any = torch.jit.freeze(module.eval(), preserved_attrs=methods)
    # Where a hook was removed, the constants around it are not folded yet, and a batch norm behind
    # a check of dimensions is not folded into its convolution. These passes make the graph equal
    # to that of a module that never had hooks.
    for graph in _graphs(frozen, methods):
        torch._C._jit_pass_peephole(graph)
        torch._C._jit_pass_constant_propagation(graph)
        torch._C._jit_pass_dce(graph)
    torch.jit.run_frozen_optimizations(  # type: ignore[attr-defined]
        frozen, preserved_methods=methods
    )
    return frozen


def _share_constants(graph: Any, other: Any) -> None:
    """Let a graph use the other's tensors wherever its own hold the same values."""
    known: dict[Any, list[torch.Tensor]] = {}
    for node in _constants(other):
        tensor = node.t("value")
        known.setdefault((tensor.dtype, tensor.shape, tensor.stride()), []).append(tensor)
    for node in _constants(graph):
        own = node.t("value")
        same = known.get((own.dtype, own.shape, own.stride()), [])
        if own.numel() > 1 and all(own.data_ptr() != one.data_ptr() for one in same):
            twin = next((one for one in same if torch.equal(own, one)), None)
            if twin is not None:
                node.t_("value", twin)


def _constants(graph: Any) -> list[Any]:
    return [
        node
        for node in graph.findAllNodes("prim::Constant", recurse=True)
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    ]


def _graphs(frozen: Any, methods: list[str]) -> Iterator[Any]:
    yield frozen.graph
    for method in methods:
        yield getattr(frozen, method).graph
