"""Gradients with respect to the inputs: those of the saved graph are those of the eager module."""

import copy
import warnings
from collections.abc import Sequence
from statistics import median_high
from typing import Any, Final

import torch
from torch import Tensor, nn

from export.definition import Definition, InputOptions
from export.eager import Reference
from export.inputs import Example
from export.tensors import compare
from formats.certificate import Check
from formats.structure import flatten

__all__ = ["check"]

_NAME: Final = "gradients: inputs, saved and loaded without freezing"
_CASES: Final = 12
# TorchScript optimises after its first call.
_CALLS: Final = 2
# The most input times output elements, and input elements times parameters, for gradcheck.
_SMALL: Final = 4096
_WORK: Final = 2**28
_NOISE: Final = 0.01


class _NoGradientError(Exception):
    """The module has no gradient with respect to its inputs here; says why."""


def check(
    module: Any, definition: Definition, reference: Reference, names: Sequence[str]
) -> tuple[Check, str]:
    """Compare the gradients of the saved graph with those of the eager module.

    For each floating-point output the gradient of its sum with fixed random weights is taken with
    respect to each floating-point input. A difference is no error, because the answers are right.

    Args:
        module: the saved module, loaded and not frozen; its hooks are OFF.
        definition: the eager module.
        reference: its cases; a dozen of them are used, without those that hold NaN or infinity:
            what a derivative is there is a matter of each kernel's own.
        names: of the flat outputs.

    Returns:
        The check, and a sentence for the certificate's notes, empty when it passed.
    """
    cases = [
        case
        for case, outputs in zip(reference.cases, reference.answers, strict=True)
        if _is_finite(case) and _is_finite(outputs)
    ]
    step = max(1, len(cases) // _CASES)
    expected, reason = [], ""
    for case in cases[::step][:_CASES]:
        try:
            expected.append((case, _gradients(definition.module, case, reference.paths)))
        except _NoGradientError as none:
            reason = reason or str(none)
    if not expected:
        reason = reason or "no verified input and its answer are finite"
        return Check(_NAME, True, 0, 0.0, f"no gradient: {reason}"), ""
    units = {pair: _unit([found[pair] for _, found in expected]) for pair in expected[0][1]}
    largest = 0.0
    for seen, (case, wanted) in enumerate(expected, 1):
        for _ in range(_CALLS):
            try:
                actual = _gradients(module, case, reference.paths)
            except _NoGradientError as none:
                return _fell(seen, largest, f"the graph has no gradient ({none})")
            for (output, number), unit in units.items():
                left, right = wanted[output, number], actual[output, number]
                label = f"{names[output]} by {definition.inputs[number].name}"
                difference = compare([left / unit], [right / unit], [label])
                largest = max(largest, difference.largest * unit)
                if not difference.equal:
                    what = f"the gradient of {label} differs by {difference.largest * unit:.3g}"
                    return _fell(seen, largest, what)
    detail = "equal to the eager module's, within tolerance of the usual gradient"
    if reason:
        detail += f", but on some inputs there is no gradient: {reason}"
    detail += f"; {_is_own(definition, reference)}"
    return Check(_NAME, True, len(expected), largest, detail), ""


def _is_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in tensors if part.is_floating_point())


def _unit(gradients: Sequence[Tensor]) -> float:
    """Return how large a gradient usually is, to compare small ones, too, with a tolerance.

    It is a median of the cases: extreme ones overflow, and of saturated ones only rounding is left.
    """
    limits = torch.finfo(gradients[0].dtype)
    finite = [torch.nan_to_num(part, 0.0, 0.0, 0.0).abs() for part in gradients if part.numel()]
    sizes = [size for part in finite if (size := part.max().item()) > 0.0]
    usual = median_high(sizes) if sizes else 1.0
    # Of numbers that lost digits to underflow, a division would make differences.
    return usual if limits.tiny / limits.eps < usual < 1.0 else 1.0


def _fell(seen: int, largest: float, what: str) -> tuple[Check, str]:
    note = (
        f"gradients must not be taken from this archive: {what}, between the eager module and the "
        "saved graph; the answers are verified all the same"
    )
    # JSON has no infinity; the sentence says what happened.
    finite = largest if largest < float("inf") else 0.0
    return Check(_NAME, False, seen, finite, what), note


def _gradients(module: Any, case: Example, paths: Sequence[str]) -> dict[tuple[int, int], Tensor]:
    """Return the gradients by number of output and of input; an unused input's are zeros."""
    with torch.enable_grad():
        inputs = [
            part.clone().requires_grad_() if part.is_floating_point() else part.clone()
            for part in case
        ]
        places = [number for number, part in enumerate(inputs) if part.requires_grad]
        if not places:
            raise _NoGradientError("no input is floating-point")
        wanted = [inputs[number] for number in places]
        try:
            # Clones: the module may write to its inputs, which leaves do not allow.
            flat = dict(flatten(module(*(part.clone() for part in inputs))))
            outputs = [
                (number, flat[path])
                for number, path in enumerate(paths)
                if isinstance(flat.get(path), Tensor) and flat[path].is_floating_point()
            ]
            found = {}
            for output, tensor in outputs:
                generator = torch.Generator().manual_seed(output)
                weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                parts: Sequence[Tensor | None] = [None] * len(wanted)
                if tensor.requires_grad:
                    parts = torch.autograd.grad(
                        tensor,
                        wanted,
                        weights.to(tensor.dtype),
                        retain_graph=True,
                        allow_unused=True,
                    )
                for number, source, part in zip(places, wanted, parts, strict=True):
                    found[output, number] = torch.zeros_like(source) if part is None else part
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # TorchScript says what is wrong last.
            said = lines[-1] if lines else ""
            raise _NoGradientError(f"{type(error).__name__}: {said}") from error
    if not any(tensor.requires_grad for _, tensor in outputs):
        raise _NoGradientError("no output depends on a floating-point input differentiably")
    return found


def _is_own(definition: Definition, reference: Reference) -> str:
    """Say whether the eager gradient is that of the forward function, which gradcheck finds."""
    # The examples come first; the cases after them hold extreme values, too.
    sizes = {
        number: sum(part.numel() for part in case if part.is_floating_point())
        for number, case in enumerate(definition.examples)
    }
    smallest = min(sizes, key=lambda number: sizes[number])
    size = sizes[smallest]
    answers = sum(part.numel() for part in reference.answers[smallest] if part.is_floating_point())
    weights = sum(parameter.numel() for parameter in definition.module.parameters())
    if size * answers > _SMALL or size * weights > _WORK:
        return "too large for gradcheck"
    try:
        # Numeric differences need float64, and its warnings are about what is caught here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = _gradcheck(
                copy.deepcopy(definition.module).double(),
                _nearby(reference.cases[smallest], definition.inputs),
            )
    except Exception as error:
        return f"gradcheck in float64 is not possible here ({type(error).__name__})"
    if own:
        return "gradcheck in float64: the gradient is that of the forward function"
    return (
        "gradcheck in float64: the gradient is not that of the forward function, as with a custom "
        "gradient; it is kept"
    )


def _gradcheck(module: nn.Module, case: Example) -> bool:
    places = [number for number, part in enumerate(case) if part.is_floating_point()]

    def forward(*wanted: Tensor) -> tuple[Tensor, ...]:
        parts = [part.clone() for part in case]
        for number, part in zip(places, wanted, strict=True):
            parts[number] = part.clone()
        leaves = [leaf for _, leaf in flatten(module(*parts)) if isinstance(leaf, Tensor)]
        if any(leaf.is_floating_point() and leaf.dtype != torch.float64 for leaf in leaves):
            raise TypeError("the module computes in a dtype of its own")
        return tuple(leaf for leaf in leaves if leaf.is_floating_point())

    with torch.enable_grad():
        wanted = tuple(case[number].requires_grad_() for number in places)
        forward(*wanted)  # what the module raises is not gradcheck's verdict
        return bool(
            torch.autograd.gradcheck(
                forward, wanted, raise_exception=False, check_undefined_grad=False
            )
        )


def _nearby(case: Example, options: Sequence[InputOptions]) -> Example:
    """Move a case a little, in float64, off zeros and ties, where a gradient may not exist."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for tensor, option in zip(case, options, strict=True):
        if not tensor.is_floating_point():
            made.append(tensor.clone())
            continue
        values = tensor.double()
        size = _NOISE * max(values.abs().max().item(), _NOISE)
        moved = values + size * torch.randn(values.shape, generator=generator, dtype=torch.float64)
        # Mirrored at its bounds: clamping would make ties again.
        if option.minimum is not None:
            moved = option.minimum + (moved - option.minimum).abs()
        if option.maximum is not None:
            moved = option.maximum - (option.maximum - moved).abs()
        made.append(moved)
    return tuple(made)
