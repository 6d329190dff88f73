"""An engine: the two functions that answer, made from a saved module by one of several ways."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import aot
from engine.onednn import optimize
from engine.torchscript import SUMMARY, observed_graph, plain_graph
from formats.engines import AOT, ONEDNN, TORCHSCRIPT
from formats.layers import Layer

__all__ = ["Engine", "make"]


@dataclass(frozen=True)
class Engine:
    """What runs a model.

    Attributes:
        name: one of `formats.engines.ENGINES`.
        plain: its inputs → the module's answer.
        summary: its inputs → (answer, codes, joined vectors), as `engine.SUMMARY` of the saved
            module; None where no layer is observed.
    """

    name: str
    plain: Callable[..., Any]
    summary: Callable[..., Any] | None


def make(
    name: str, module: Any, chosen: Sequence[Layer] | None, folder: Path | None = None
) -> Engine:
    """Make an engine of a saved module.

    Args:
        name: one of `formats.engines.ENGINES`.
        module: the loaded ScriptModule; stays as it is.
        chosen: the layers to take statistics of; None for no observed graph.
        folder: where compiled graphs are, for the engine that has them.

    Raises:
        FormatError: a file of a compiled graph is missing or damaged.
        ValueError: there is no such engine.
        RuntimeError: torch cannot make it of this module.
    """
    if name == AOT and folder is not None:
        return Engine(name, *aot.load(folder, observed=chosen is not None))
    plain = plain_graph(module)
    observed = None if chosen is None else observed_graph(module, chosen, plain)
    if name == ONEDNN:
        plain = optimize(plain)
        observed = None if observed is None else optimize(observed, [SUMMARY])
    elif name != TORCHSCRIPT:
        raise ValueError(f"there is no engine {name!r} in this archive")
    return Engine(name, plain, None if observed is None else getattr(observed, SUMMARY))
