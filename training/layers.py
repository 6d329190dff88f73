"""Which layers of an eager module a pattern means."""

from collections.abc import Iterable

import torch
from torch import nn

from formats.layers import fits

__all__ = ["matching", "refuse_unobservable"]


def matching(model: nn.Module, patterns: Iterable[str]) -> dict[nn.Module, str]:
    """Return the layers that patterns fit, each with its name.

    Args:
        model: the whole; it is no layer itself.
        patterns: globs on qualified names (`block*.relu`), or on classes (`type:Conv*`).

    Returns:
        Layers in the order of `named_modules()`. One that has several names gets the first that a
        pattern fits.

    Raises:
        ValueError: a pattern fits no layer.
    """
    layers = [pair for pair in model.named_modules(remove_duplicate=False) if pair[0]]
    found: set[str] = set()
    for pattern in patterns:
        own = {name for name, layer in layers if fits(name, type(layer).__name__, pattern)}
        if not own:
            names = ", ".join(name for name, _ in layers) or "none"
            raise ValueError(f"{pattern!r} fits no layer; the layers are {names}")
        found |= own
    chosen: dict[nn.Module, str] = {}
    for name, layer in layers:
        if name in found:
            chosen.setdefault(layer, name)
    return chosen


def refuse_unobservable(model: nn.Module) -> None:
    """Refuse what does not run its layers' hooks one after another in this process.

    Raises:
        ValueError: some part is compiled, scripted or split over threads.
    """
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        what = f"{name or 'the model'} ({kind})"
        if isinstance(layer, torch.jit.ScriptModule):
            raise ValueError(f"{what} is scripted; observe the module it was made from")
        # Its class, OptimizedModule, is private, and importing it takes seconds.
        if hasattr(layer, "_orig_mod") or getattr(layer, "_compiled_call_impl", None) is not None:
            raise ValueError(f"{what} is compiled; observe the module before torch.compile")
        if isinstance(layer, nn.DataParallel):
            raise ValueError(
                f"{what} copies the model to threads; observe its .module on one device, or use "
                "DistributedDataParallel, where each process observes its own"
            )
