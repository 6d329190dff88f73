"""Which layers are observed, and what Python's own forward hooks see of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine import PREFIX
from export.eager import answer
from export.errors import ExportError
from export.inputs import Example
from export.rewrite import opens, rewritten
from export.signature import with_rows
from export.tensors import compare
from formats.layers import Layer, fits
from formats.structure import flatten

__all__ = ["Call", "choose", "describe", "watch"]

_ACTIVATIONS: Final = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Sigmoid),
    *(nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Softplus, nn.Softshrink, nn.Softsign, nn.GLU),
    *(nn.Threshold,),
)
_ROWS: Final = (3, 5)
_MOST_PROBES: Final = 32


@dataclass(frozen=True)
class Call:
    """One call of a layer, as a forward hook sees it.

    Attributes:
        name: the layer's qualified name.
        parts: the leaves of its output with their paths; what is no tensor is None.
    """

    name: str
    parts: list[tuple[str, Tensor | None]]


@contextmanager
def watch(module: nn.Module, names: Sequence[str]) -> Iterator[list[Call]]:
    """Collect the calls of some layers with ordinary forward hooks, in execution order.

    The hooks are removed at the end, also after an exception.
    """
    calls: list[Call] = []
    handles = []

    def hook_for(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            # Cloned: a layer that works in place would change what was seen.
            parts = [
                (path, leaf.detach().clone() if isinstance(leaf, Tensor) else None)
                for path, leaf in flatten(output)
            ]
            calls.append(Call(name, parts))

        return hook

    closed = [layer for layer in module.modules() if opens(type(layer))]
    try:
        for name, layer in module.named_modules():
            if name in names:
                handles.append(_register(layer, hook_for(name)))
        # They would skip the layers inside them, or give those nested tensors.
        for layer in closed:
            layer.forward = MethodType(rewritten(type(layer), "forward"), layer)
            setattr(layer, f"{PREFIX}open", True)
        yield calls
    finally:
        for layer in closed:
            layer.__dict__.pop("forward", None)
            layer.__dict__.pop(f"{PREFIX}open", None)
        for handle in handles:
            handle.remove()


def _register(layer: nn.Module, hook: Callable[..., None]) -> RemovableHandle:
    # First, to see what the layer itself puts out, as a compiled hook does. A scripted part runs
    # hooks, but its own method only says that it takes none.
    return nn.Module.register_forward_hook(layer, hook, prepend=True)


def choose(
    module: nn.Module, names: Sequence[str], patterns: Sequence[str], example: Example
) -> set[str]:
    """Choose the layers that statistics are taken of.

    Args:
        module: the eager module.
        names: the layers that can be hooked.
        patterns: globs on names (`block*.relu`), or on classes (`type:Conv*`); without any, every
            activation function that is a module, and every layer that feeds an output.
        example: an input.

    Raises:
        ExportError: a pattern fits no layer that can be hooked.
    """
    layers = dict(module.named_modules())
    if patterns:
        chosen: set[str] = set()
        for pattern in patterns:
            found = {name for name in names if fits(name, _kind(layers[name]), pattern)}
            if not found:
                raise ExportError(
                    f"--layers {pattern!r} fits no layer that can be hooked",
                    hint=f"the layers are {', '.join(names) or 'none'}",
                )
            chosen |= found
        return chosen
    return {name for name in names if isinstance(layers[name], _ACTIVATIONS)} | _feeding(
        module, names, example
    )


def _kind(layer: nn.Module) -> str:
    """Return the name of a layer's class; of a scripted one, that of the class it was."""
    return str(getattr(layer, "original_name", type(layer).__name__))


def _feeding(module: nn.Module, names: Sequence[str], example: Example) -> set[str]:
    """Return the innermost layers whose output is an output of the model."""
    seen: list[tuple[str, Any]] = []
    handles = []

    def hook_for(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            seen.extend((name, leaf) for _, leaf in flatten(output))

        return hook

    try:
        for name, layer in module.named_modules():
            if name in names:
                handles.append(_register(layer, hook_for(name)))
        with torch.no_grad():
            result = module(*(tensor.clone() for tensor in example))
    finally:
        for handle in handles:
            handle.remove()
    sources = [
        next((name for name, own in seen if own is leaf or _is_cast(own, leaf)), None)
        for _, leaf in flatten(result)
    ]
    return {name for name in sources if name is not None}


def _is_cast(own: Any, leaf: Any) -> bool:
    """Tell whether an output is what a layer put out, in another dtype: see `export.precision`."""
    if not isinstance(own, Tensor) or not isinstance(leaf, Tensor):
        return False
    lowered = own.dtype == torch.bfloat16 and leaf.dtype == torch.float32
    return lowered and own.shape == leaf.shape and torch.equal(own.to(leaf.dtype), leaf)


def describe(
    module: nn.Module,
    names: Sequence[str],
    chosen: set[str],
    cases: Sequence[Example],
    *,
    row_axis: bool,
    independent: bool,
) -> tuple[Layer, ...]:
    """Describe layers in execution order; those that no case reaches come last.

    Each case shows the order of the layers on its way. These are merged, so that a layer of a
    branch that later cases take stands where it runs; where they contradict each other, the
    first counts.

    Args:
        module: the eager module.
        names: the layers to describe.
        chosen: those that statistics are taken of.
        cases: inputs.
        row_axis: whether axis 0 of the model's inputs and outputs counts rows.
        independent: whether rows do not influence each other, so that a row's share of a layer's
            output can be checked against the row alone.
    """
    parts: dict[str, list[str]] = {}
    orders: dict[tuple[str, ...], None] = {}
    with watch(module, names) as calls:
        for case in cases:
            answer(module, case)
            for call in calls:
                parts.setdefault(call.name, [path for path, _ in call.parts])
            orders[tuple(dict.fromkeys(call.name for call in calls))] = None
            calls.clear()
    axes: dict[str, tuple[int, ...]] = {}
    for example in _probes(cases, independent) if row_axis else ():
        if axes.keys() >= parts.keys():
            break
        axes = _row_axes(module, names, example, independent) | axes
    kinds = {name: _kind(layer) for name, layer in module.named_modules()}
    return tuple(
        Layer(
            name,
            kinds[name],
            name in chosen,
            axes.get(name, tuple(-1 for _ in parts.get(name, [""]))),
            tuple(parts.get(name, [""])),
        )
        for name in [*_merged(orders), *(name for name in names if name not in parts)]
    )


def _merged(orders: Iterable[Sequence[str]]) -> list[str]:
    """Merge orders: what comes after nothing that is left goes next, the first seen before others.

    Where everything left comes after something, orders contradict each other: the first seen goes.
    """
    earlier: dict[str, set[str]] = {}
    for order in orders:
        for place, name in enumerate(order):
            earlier.setdefault(name, set()).update(order[max(0, place - 1) : place])
    merged = []
    while earlier:
        free = (name for name, others in earlier.items() if others.isdisjoint(earlier))
        name = next(free, next(iter(earlier)))
        merged.append(name)
        del earlier[name]
    return merged


def _many_rows(cases: Sequence[Example]) -> Example:
    """Join the rows of all cases that fit the first, so that rows can be told apart."""
    shapes = [tensor.shape[1:] for tensor in cases[0]]
    fitting = [case for case in cases if [tensor.shape[1:] for tensor in case] == shapes]
    return tuple(torch.cat(columns) for columns in zip(*fitting, strict=True))


def _probes(cases: Sequence[Example], independent: bool) -> Iterator[Example]:
    """Yield inputs to find row axes with; each case for the layers that the rest does not reach.

    Not where rows share a batch: a layer that only some batches run is measured for each request
    alone, and having no row axis is how that is known.
    """
    yield _many_rows(cases)
    if not independent:
        yield from cases[:_MOST_PROBES]


def _row_axes(
    module: nn.Module, names: Sequence[str], example: Example, independent: bool
) -> dict[str, tuple[int, ...]]:
    """Find, for each part of each layer's output, the axis that follows the number of rows."""
    by_rows = []
    with watch(module, names) as calls:
        for rows in _ROWS:
            answer(module, with_rows(example, rows))
            by_rows.append(list(calls))
            calls.clear()
        answer(module, with_rows(example, 1))
        alone = list(calls)
    if not all([c.name for c in calls] == [c.name for c in alone] for calls in by_rows):
        return {}
    found: dict[str, list[int]] = {}
    for few, many, one in zip(*by_rows, alone, strict=True):
        axes = [
            _axis(a, b, c if independent else None)
            for (_, a), (_, b), (_, c) in zip(few.parts, many.parts, one.parts, strict=True)
        ]
        known = found.setdefault(few.name, axes)
        # A later call with its rows elsewhere: better no rows than wrong ones.
        found[few.name] = [old if old == new else -1 for old, new in zip(known, axes, strict=True)]
    return {name: tuple(axes) for name, axes in found.items()}


def _axis(few: Tensor | None, many: Tensor | None, alone: Tensor | None) -> int:
    if few is None or many is None or few.ndim != many.ndim:
        return -1
    for axis in range(few.ndim):
        exact = few.shape[axis] == _ROWS[0] and many.shape[axis] == _ROWS[1]
        shares = axis == 0 and few.shape[0] * _ROWS[1] == many.shape[0] * _ROWS[0]
        if exact or (shares and few.shape[0] % _ROWS[0] == 0):
            if alone is None or alone.ndim != few.ndim:
                return axis
            own = few.movedim(axis, 0)[: alone.shape[axis]]
            return axis if compare([own], [alone.movedim(axis, 0)], [""]).equal else -1
    return -1
