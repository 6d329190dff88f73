"""What TorchScript refuses in words that say nothing, or compiles to something else."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from export.definition import Definition
from export.eager import Reference, answer
from export.errors import ExportError

__all__ = ["hook_at_fault", "refuse_other_outputs", "refuse_recomputed_weights"]

_ONE_OUTPUT: Final = (
    "wrap the module in one whose forward returns the same in both: `out = self.inner(x)`, then "
    "`if torch.jit.is_scripting():` pick the tensor out of it, else return it as it is; or use "
    "--trace if no branch of the model depends on data"
)


def refuse_recomputed_weights(definition: Definition, method: str) -> None:
    """Refuse layers that compute a weight from others in each call.

    Raises:
        ExportError: names the layer and the function that makes the weight a plain one.
    """
    for name, layer in definition.module.named_modules():
        shown = name or "of the whole module"
        for what, cure, with_trace in _recomputed(layer):
            # A trace records the arithmetic; the old spectral norm writes to its module as well.
            if method == "script" or not with_trace:
                raise ExportError(
                    f"layer {shown} computes its {what}, which TorchScript cannot compile",
                    where=str(definition.source),
                    hint=f"in build(), after loading the weights: {cure}",
                )


def _recomputed(layer: nn.Module) -> Iterator[tuple[str, str, bool]]:
    """Yield what a layer computes anew, how to end that, and whether a trace may keep it."""
    if is_parametrized(layer):
        tensor = next(iter(layer.parametrizations))  # type: ignore[arg-type]
        yield (
            f"{tensor} anew in each call (torch.nn.utils.parametrize)",
            f"parametrize.remove_parametrizations(layer, {tensor!r})",
            True,
        )
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield (
                f"{hook.name} anew in each call, with a hook (torch.nn.utils.weight_norm)",
                f"torch.nn.utils.remove_weight_norm(layer, {hook.name!r})",
                True,
            )
        elif isinstance(hook, SpectralNorm):
            yield (
                f"{hook.name} anew in each call, with a hook (torch.nn.utils.spectral_norm)",
                f"torch.nn.utils.remove_spectral_norm(layer, {hook.name!r})",
                False,
            )
        elif isinstance(hook, prune.BasePruningMethod):
            tensor = hook._tensor_name
            yield (
                f"{tensor} anew in each call, with a hook (torch.nn.utils.prune)",
                f"torch.nn.utils.prune.remove(layer, {tensor!r})",
                True,
            )


def hook_at_fault(definition: Definition, text: str) -> ExportError | None:
    """Find out whether a module compiles but for the hooks that its author registered.

    Args:
        definition: its module did not compile.
        text: the compiler's words; a hook that they mention is named first.

    Returns:
        The refusal, or None where there are no hooks or they are not the reason.
    """
    hooks = [
        (name, kind, hook)
        for name, layer in definition.module.named_modules()
        for kind, table in _tables(layer)
        for hook in table.values()
    ]
    if not hooks or not _compiles_without(definition.module):
        return None
    hooks.sort(key=lambda one: not any(mark in text for mark in _marks(one[2])))
    (name, kind, hook), *more = hooks
    called = getattr(hook, "__name__", type(hook).__name__)
    others = f", as one of {len(hooks)} hooks," if more else ""
    before = kind == "register_forward_pre_hook"
    typed = (
        "(self, inputs: Tuple[Tensor]) -> Tuple[Tensor]"
        if before
        else "(self, inputs: Tuple[Tensor], output: Tensor) -> Tensor"
    )
    return ExportError(
        f"layer {name or 'of the whole module'} has a hook{others} that TorchScript cannot "
        f"compile: {called!r}, registered with {kind}",
        where=_place(hook) or str(definition.source),
        hint="do in forward what it does, and remove the hook before build() returns "
        "(handle.remove()); TorchScript compiles a hook only if it is a named function with "
        f"types: `def hook{typed}:`",
    )


def _tables(layer: nn.Module) -> list[tuple[str, Any]]:
    return [
        ("register_forward_pre_hook", layer._forward_pre_hooks),
        ("register_forward_hook", layer._forward_hooks),
    ]


def _marks(hook: Any) -> list[str]:
    return [mark for mark in (_place(hook), repr(getattr(hook, "__name__", ""))) if len(mark) > 2]


def _place(hook: Any) -> str:
    code = getattr(inspect.unwrap(hook), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def _compiles_without(module: nn.Module) -> bool:
    with _without_hooks(module), suppress(Exception):
        torch.jit.script(module)
        return True
    return False


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    kept = [(table, table.copy()) for part in module.modules() for _, table in _tables(part)]
    try:
        for table, _ in kept:
            table.clear()
        yield
    finally:
        for table, before in kept:
            table.update(before)


def refuse_other_outputs(module: Any, definition: Definition, observed: Reference) -> None:
    """Refuse a compiled module that returns other things than the eager one.

    Code under `torch.jit.is_scripting()` may do that. What raises is left to parity.

    Raises:
        ExportError: says what either returns.
    """
    example = definition.examples[0]
    try:
        paths = {path for path, _ in answer(module, example)}
    except Exception as error:
        if "undefined Tensor" not in str(error):
            return
        returned = "a tensor that is not defined"
    else:
        if paths == set(observed.paths):
            return
        returned = _shown(_result(module, example))
    eager = _shown(_result(definition.module, example))
    attention = "None" in eager and "defined" in returned
    raise ExportError(
        f"the compiled module returns {returned} where the eager one returns {eager}",
        where=str(definition.source),
        hint="return only what is a tensor: `y, _ = self.attention(...)`, then `return y`"
        if attention
        else _ONE_OUTPUT,
    )


def _result(module: Any, example: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return module(*(tensor.clone() for tensor in example))


def _shown(value: Any) -> str:
    """Write down what something is made of, e.g. "Out(logits: tensor, aux: None)"."""
    if isinstance(value, dict):
        inside = ", ".join(f"{key!r}: {_shown(part)}" for key, part in value.items())
        return f"{{{inside}}}"
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        inside = ", ".join(
            f"{field}: {_shown(part)}" for field, part in zip(fields, value, strict=True)
        )
        return f"{type(value).__name__}({inside})"
    if isinstance(value, (tuple, list)):
        inside = ", ".join(map(_shown, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if value is None:
        return "None"
    return "tensor" if isinstance(value, Tensor) else type(value).__name__
