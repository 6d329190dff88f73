"""The hooks, compiled and proved: an observed graph whose numbers are those of eager hooks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from export.definition import Definition
from export.eager import Reference, answer
from export.errors import ExportError
from export.hooks import Hookable, define_observe, hookable, hooked
from export.inputs import Example
from export.layers import choose, describe, watch
from export.rounding import Rounding
from export.tensors import compare, leaves
from formats.certificate import Check
from formats.layers import Layer, Layers
from formats.observation import layer_key, totals
from formats.signature import Signature
from formats.statistics import LayerStatistics

__all__ = ["Observable", "apart", "check", "compile_hooks"]

_CASES: Final = 12
TOLERANCE: Final = 1e-5
# Of the values of a layer: the share that rounding may put on the other side of 0.
_FEW_ZEROS: Final = 1e-4


@dataclass(frozen=True)
class Observable:
    """A module compiled with hooks.

    Attributes:
        module: its forward answers as the plain module; its `observe` looks inside.
        layers: the layers that were hooked, and those that could not be.
    """

    module: torch.jit.ScriptModule
    layers: Layers


def compile_hooks(
    definition: Definition,
    plain: torch.jit.ScriptModule,
    signature: Signature,
    cases: Sequence[Example],
    *,
    patterns: Sequence[str],
    independent: bool,
) -> Observable:
    """Compile a module again, with a hook in every layer that takes one.

    Args:
        definition: the module.
        plain: the same, compiled without hooks.
        signature: its interface.
        cases: inputs to find the order and the row axes of layers with.
        patterns: which layers to take statistics of; see `export.layers.choose`.
        independent: whether rows do not influence each other.

    Raises:
        ExportError: a pattern fits no layer.
    """
    module = definition.module
    candidates, left_out = hookable(module, plain)
    candidates = _compilable(module, candidates, left_out)
    names = [layer.name for layer in candidates]
    chosen = choose(module, names, patterns, definition.examples[0])
    layers = describe(
        module, names, chosen, cases, row_axis=signature.row_axis, independent=independent
    )
    with hooked(module, candidates, {layer.name: layer.axes for layer in layers}):
        compiled = torch.jit.script(module)
    define_observe(compiled, [layer.name for layer in layers], [s.name for s in signature.inputs])
    return Observable(compiled, Layers(layers, left_out))


def _compilable(
    module: nn.Module, candidates: list[Hookable], left_out: dict[str, str]
) -> list[Hookable]:
    """Leave out layers whose hook does not compile, with the compiler's words."""
    if not _compile_error(module, candidates):
        return candidates
    kept = []
    for layer in candidates:
        error = _compile_error(module, [layer])
        if error:
            left_out[layer.name] = f"its hook does not compile: {error}"
        else:
            kept.append(layer)
    if _compile_error(module, kept):
        left_out |= {layer.name: "hooks do not compile together here" for layer in kept}
        return []
    return kept


def _compile_error(module: nn.Module, layers: list[Hookable]) -> str:
    try:
        with hooked(module, layers, {}):
            torch.jit.script(module)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # A line that ends in a colon only introduces the one that says what is wrong.
        said = [line for line in lines if not line.endswith(":")]
        return next(iter(said or lines), type(error).__name__)
    return ""


def check(
    summary: Callable[..., Any],
    layers: Sequence[Layer],
    definition: Definition,
    reference: Reference,
    rounding: Rounding,
    *,
    tolerance: float = TOLERANCE,
) -> Check:
    """Compare the frozen observed graph with ordinary eager hooks and NumPy.

    Args:
        summary: of the graph.
        layers: those hooked into it, in the order of `layers.json`.
        definition: the eager module.
        reference: the eager answers, to compare the observed graph's own answers with.
        rounding: how far these move for no reason.
        tolerance: of statistics, as a share of the layer's largest value if that is above 1.

    Raises:
        ExportError: an answer or a statistic differs; names the layer.
    """
    chosen = [layer for layer in layers if layer.chosen]
    where = str(definition.source)
    largest = 0.0
    seen = 0
    step = max(1, len(reference.cases) // _CASES)
    for case, wanted in list(zip(reference.cases, reference.answers, strict=True))[::step]:
        with torch.no_grad():
            result, codes, joined = summary(*(tensor.clone() for tensor in case))
        flat = leaves(result)
        difference = compare(
            wanted,
            [tensor for _, tensor in flat],
            [name or "output" for name, _ in flat],
            partial(rounding, case),
        )
        if not difference.equal:
            raise ExportError(f"the observed graph differs: {difference.detail}", where=where)
        with watch(definition.module, [layer.name for layer in chosen]) as calls:
            answer(definition.module, case)
        eager = _eager_values(calls, chosen)
        for one, statistics in totals(layers, codes, joined.tolist()):
            if one.key not in eager:
                raise ExportError(f"layer {one.key} ran in the scripted graph only", where=where)
            if statistics is None:
                eager.pop(one.key)
                continue
            moved = apart(statistics, eager.pop(one.key))
            if moved > tolerance:
                raise ExportError(
                    f"statistics of layer {one.key} differ from those of an eager hook "
                    f"by {moved:.3g}",
                    where=where,
                )
            largest = max(largest, moved)
        if eager:
            raise ExportError(f"layer {next(iter(eager))} ran in eager only", where=where)
        seen += 1
    return Check(
        name="activations: statistics of the observed graph",
        passed=True,
        cases=seen,
        max_difference=largest,
        detail=f"equal to NumPy's on what eager hooks see in {len(chosen)} layers",
    )


def _eager_values(calls: Sequence[Any], chosen: Sequence[Layer]) -> dict[str, np.ndarray[Any, Any]]:
    by_name = {layer.name: layer for layer in chosen}
    counted: dict[str, int] = {}
    values = {}
    for call in calls:
        number = counted.get(call.name, 0)
        counted[call.name] = number + 1
        for part, (_, tensor) in enumerate(call.parts):
            if tensor is None:
                continue
            plain = tensor.abs() if tensor.is_complex() else tensor
            wide = plain.float() if plain.dtype == torch.bfloat16 else plain
            values[layer_key(by_name[call.name], number, part)] = wide.numpy().astype(np.float64)
    return values


def apart(statistics: LayerStatistics, values: "np.ndarray[Any, Any]") -> float:
    """Return the largest difference, relative where the values are large."""
    if values.size == 0:
        return 0.0 if statistics.elements == 0 else float("inf")
    scale = max(1.0, float(np.abs(values).max()))
    zeros = float((values == 0).mean())
    # Where rounding puts a value on the other side of 0, a ReLU makes it a zero or no longer one.
    if statistics.zero_fraction is not None and abs(statistics.zero_fraction - zeros) <= _FEW_ZEROS:
        zeros = statistics.zero_fraction
    pairs = [
        (statistics.mean, values.mean() / scale, scale),
        (statistics.std, values.std() / scale, scale),
        (statistics.min, values.min() / scale, scale),
        (statistics.max, values.max() / scale, scale),
        (statistics.zero_fraction, zeros, 1.0),
    ]
    return max(
        float("inf") if mine is None else abs(mine / unit - float(theirs))
        for mine, theirs, unit in pairs
    )
