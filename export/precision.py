"""A lower precision by the user's choice: weights and computation in bfloat16, float32 outside."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from engine import PREFIX, plain_graph
from export.definition import Definition
from export.eager import Reference, answer
from export.errors import ExportError
from export.hooks import rebuilt
from export.instances import renamed
from export.observed import TOLERANCE
from export.rewrite import compile_function, rewritten
from export.rounding import Rounding
from export.tensors import compare, dtype_name
from export.torchscript import Method
from formats.certificate import Cost, Precision
from formats.signature import Signature

__all__ = ["STATISTICS_TOLERANCE", "cost", "lowered", "rounded", "rounding_of"]

STATISTICS_TOLERANCE: Final = {"": TOLERANCE, "bfloat16": 2e-2}
"""By precision: how far statistics of one graph may be from those of another."""

_INNER: Final = f"{PREFIX}precise_forward"
_HINT: Final = "export it without --precision (or PRECISION) to serve it as it is"


def lowered(definition: Definition, method: Method) -> Definition:
    """Return the definition with its module in its precision, taking and returning what it did.

    The names of its layers, inputs and outputs stay; floating-point inputs are cast as they come
    in, outputs as they go out. A module with 2-d convolutions gets its weights and 4-d inputs in
    channels-last order.

    Args:
        definition: one whose module can be scripted; it is copied.
        method: how it will be compiled.

    Raises:
        ExportError: the module cannot be scripted, or does not run in bfloat16.
    """
    if not definition.precision:
        return definition
    where = str(definition.source)
    if method != "script":
        raise ExportError(
            "a trace is not brought to bfloat16", where=where, hint=f"leave --trace out; or {_HINT}"
        )
    try:
        scripted: Any = torch.jit.script(definition.module)
        schema = scripted.forward.schema
    except Exception as error:
        raise ExportError(
            f"only a module that TorchScript can compile is brought to bfloat16: "
            f"{_last_line(error)}",
            where=where,
            hint=_HINT,
        ) from error
    module: nn.Module = copy.deepcopy(definition.module).to(torch.bfloat16)
    images = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    if images:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module.__class__ = _cast_around(type(module), schema, definition.examples[0], images)
    try:
        for example in definition.examples:
            answer(module, example)
    except Exception as error:
        raise ExportError(
            f"the module does not run in bfloat16: {type(error).__name__}: {_last_line(error)}",
            where=where,
            hint=f"a dtype that its code names stays float32 there; or {_HINT}",
        ) from error
    return replace(definition, module=module)


def cost(
    loaded: Any, given: Definition, reference: Reference, signature: Signature
) -> Precision | None:
    """Compare what serves with the module as it was given, on every verified input.

    Args:
        loaded: the saved module, in bfloat16.
        given: the definition before it was lowered.
        reference: the verified inputs.
        signature: names outputs, and says which have labels.

    Returns:
        What it cost; None if the definition asks for no lower precision.

    Raises:
        ExportError: an answer moved further than rounding to bfloat16 explains; names the output.
    """
    if not given.precision:
        return None
    frozen = plain_graph(loaded)
    names = [spec.name for spec in signature.outputs]
    rounding = Rounding(given.module, torch.bfloat16)
    costs = [_Cost() for _ in names]
    cases = 0
    for case in (*reference.cases, *given.calibration):
        exact = _answer(given.module, case, reference.paths)
        if not exact:
            continue  # refused by one of the two, with an error
        found = _answer(frozen, case, reference.paths)
        for name, one, other in zip(names, exact, found, strict=True):
            if one.dtype != other.dtype:
                raise ExportError(
                    f"output {name!r} is {dtype_name(one.dtype)}, and {dtype_name(other.dtype)} "
                    "when computed in bfloat16",
                    where=str(given.source),
                    hint=_HINT,
                )
        difference = compare(rounded(exact), rounded(found), names, partial(rounding, case))
        if not difference.equal:
            raise ExportError(
                f"in bfloat16 {difference.detail}, more than rounding explains",
                where=str(given.source),
                hint=f"a branch or an index may hang on a small difference; {_HINT}",
            )
        for total, spec, one, other in zip(costs, signature.outputs, exact, found, strict=True):
            total.add(one, other, labelled=bool(spec.labels))
        cases += 1
    return Precision(
        "bfloat16", cases, tuple(one.total(name) for name, one in zip(names, costs, strict=True))
    )


def _answer(module: Any, case: Sequence[Tensor], paths: Sequence[str]) -> list[Tensor]:
    try:
        by_path = dict(answer(module, tuple(case)))
        return [by_path[path] for path in paths]
    except Exception:
        return []


def rounded(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors with floating-point ones as bfloat16, to be compared with its tolerance."""
    return [
        tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor for tensor in tensors
    ]


def rounding_of(definition: Definition) -> Rounding:
    """Return what rounding does to the definition's module, in the precision it computes in."""
    dtype = torch.bfloat16 if definition.precision == "bfloat16" else None
    return Rounding(definition.module, dtype)


@dataclass
class _Cost:
    absolute: float = 0.0
    relative: float = 0.0
    rows: int = 0
    changed: int = 0

    def add(self, exact: Tensor, lowered: Tensor, *, labelled: bool) -> None:
        if exact.numel() == 0:
            return
        one, other = exact.to(torch.float64), lowered.to(torch.float64)
        finite = one.isfinite() & other.isfinite()
        gap = (one - other).abs().masked_fill(~finite, 0.0).max().item()
        size = one.abs().masked_fill(~finite, 0.0).max().item()
        self.absolute = max(self.absolute, gap)
        self.relative = max(self.relative, gap / size if size else 0.0)
        if labelled:
            moved = one.argmax(-1) != other.argmax(-1)
            self.rows += moved.numel()
            self.changed += int(moved.sum())

    def total(self, name: str) -> Cost:
        share = self.changed / self.rows if self.rows else None
        return Cost(name, self.absolute, self.relative, share)


def _cast_around(
    kind: type[nn.Module], schema: Any, example: Sequence[Tensor], images: bool
) -> Any:
    """Derive a class whose forward casts what comes in and what goes out."""
    typed = [f"{one.name}: {one.type.annotation_str}" for one in schema.arguments[1:]]
    result = schema.returns[0].type
    passed = [
        _cast_in(one.name, tensor, images)
        for one, tensor in zip(schema.arguments[1:], example, strict=False)
    ]
    source = (
        f"def forward({', '.join(['self', *typed[: len(example)]])}):\n"
        f"    output = self.{_INNER}({', '.join(passed)})\n"
        f"    return {rebuilt(result, 'output', _cast_out)}\n"
    )
    if issubclass(kind, nn.RNNBase):
        signature = f"({', '.join(['self', *typed])}) -> {result.annotation_str}"
        inner = rewritten(kind, _INNER, signature)
    else:
        inner = renamed(kind.forward, _INNER)
    return type(
        kind.__name__,
        (kind,),
        {
            "forward": compile_function(source, "forward", kind, {"torch": torch}),
            _INNER: inner,
            "__module__": kind.__module__,
        },
    )


def _cast_in(name: str, tensor: Tensor, images: bool) -> str:
    if not tensor.is_floating_point():
        return name
    if images and tensor.ndim == 4:
        return f"{name}.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)"
    return f"{name}.to(torch.bfloat16)"


def _cast_out(value: str) -> str:
    return f"({value}.to(torch.float32) if {value}.dtype == torch.bfloat16 else {value})"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
