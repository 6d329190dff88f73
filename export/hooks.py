"""Compiled forward hooks: layers that record what they put out, inside a scripted graph.

A hook registered with `register_forward_hook` compiles only where every call passes every
argument of `forward`, which leaves out attention and whatever else has optional arguments. So a
layer is given a `forward` of its own for the time of the compilation: it calls the original and
then does what a forward hook would. Each layer has a mode that the graph reads: with mode 0,
freezing removes all of it, and the plain graph is the one without hooks.
"""

import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from engine import OBSERVE, PREFIX, SUMMARY, statistics
from export.instances import renamed
from export.rewrite import compile_function, opens, rewritten
from formats.observation import GRADIENT, INSPECT, OFF, STATISTICS

__all__ = ["Hookable", "define_observe", "hookable", "hooked", "rebuilt"]

_NAMESPACE: Final = {
    "torch": torch,
    "inspect_rows": statistics.inspect_rows,
    "is_finite": statistics.is_finite,
    "summarise_rows": statistics.summarise_rows,
}


class Hookable(typing.NamedTuple):
    """A layer that a hook can be compiled into.

    Attributes:
        name: as `named_modules()` has it.
        signature: of its forward, as TorchScript source.
        arguments: their names and types.
        result: the type that forward returns.
    """

    name: str
    signature: str
    arguments: tuple[tuple[str, Any], ...]
    result: Any


def hookable(
    module: nn.Module, scripted: torch.jit.ScriptModule
) -> tuple[list[Hookable], dict[str, str]]:
    """Find the layers whose forward TorchScript has compiled.

    Args:
        module: as Python has it.
        scripted: the same, compiled without hooks.

    Returns:
        The layers, and the reason for each one that is left out.
    """
    found = []
    left_out = {}
    compiled = dict(scripted.named_modules())
    closed = tuple(
        f"{name}." if name else ""
        for name, layer in module.named_modules()
        if isinstance(layer, ScriptModule)
    )
    for name, layer in module.named_modules():
        if not name or isinstance(layer, (nn.ModuleList, nn.ModuleDict, nn.ParameterList)):
            continue
        if name.startswith(closed):
            left_out[name] = "it is inside a part that was scripted before, which takes no hook"
            continue
        twin = compiled.get(name)
        method = _method(twin)
        if twin is None or not method:
            left_out[name] = f"the scripted graph never calls this {type(layer).__name__}"
            continue
        schema = twin._c._get_method(method).schema
        parameters = [
            f"{one.name}: {one.type.annotation_str}"
            + (f" = {one.default_value!r}" if one.has_default_value() else "")
            for one in schema.arguments[1:]
        ]
        arguments = tuple((one.name, one.type) for one in schema.arguments[1:])
        result = schema.returns[0].type
        signature = f"({', '.join(['self', *parameters])}) -> {result.annotation_str}"
        found.append(Hookable(name, signature, arguments, result))
    return found, left_out


def _method(twin: Any) -> str:
    """Name the compiled forward; of several, one for each type of input, that for tensors."""
    if twin is None:
        return ""
    return next((name for name in ("forward", "forward__0") if twin._c._has_method(name)), "")


@contextmanager
def hooked(
    module: nn.Module, layers: Sequence[Hookable], axes: dict[str, tuple[int, ...]]
) -> Iterator[None]:
    """Put hooks into layers for as long as the context lasts, to be compiled meanwhile.

    Args:
        module: the module; left as it was, also after an exception.
        layers: which of its layers.
        axes: layer name to the row axis of each part of its output, -1 where there is none.
    """
    parts = dict(module.named_modules())
    classes: dict[tuple[type, str], type] = {}
    originals: list[tuple[nn.Module, type]] = []
    enclosed: list[tuple[nn.Module, str, nn.Module]] = []
    # The compiler leaves there which methods have several forms, and reads it the next time.
    forms = {part: part.__dict__.pop("__overloads__", None) for part in parts.values()}
    try:
        for layer in layers:
            part = parts[layer.name]
            if isinstance(part, ScriptModule):
                owner, _, own = layer.name.rpartition(".")
                enclosed.append((parts[owner], own, part))
                part = parts[owner]._modules[own] = _Enclosed(part)
            kind = type(part)
            key = (kind, layer.signature)
            if key not in classes:
                classes[key] = _hooked_class(kind, layer)
            originals.append((part, kind))
            part.__class__ = classes[key]
            if opens(kind):
                part._vitrine_open = False
            part._vitrine_mode = OFF
            part._vitrine_axes = list(axes.get(layer.name, ())) or [-1]
            part._vitrine_calls = 0
            part._vitrine_codes = torch.jit.Attribute([], list[int])
            part._vitrine_found = torch.jit.Attribute([], list[Tensor])
        yield
    finally:
        for owner_of, own, part in enclosed:
            owner_of._modules[own] = part
        for part, kind in originals:
            part.__class__ = kind
            for name in [name for name in vars(part) if name.startswith(PREFIX)]:
                delattr(part, name)
        for part, names in forms.items():
            part.__dict__.pop("__overloads__", None)
            if names is not None:
                part.__dict__["__overloads__"] = names


class _Enclosed(nn.Module):
    """A part that was scripted before, in one that takes a hook."""

    def __init__(self, scripted: nn.Module) -> None:
        super().__init__()
        self.scripted = scripted


def define_observe(
    scripted: torch.jit.ScriptModule, names: Sequence[str], inputs: Sequence[str]
) -> None:
    """Add the methods `observe` and `summary` to a module that was compiled with hooks.

    `observe` takes what `forward` takes and returns forward's result, a list of integers for each
    of the named layers, in order, and a list of vectors for each; `formats.observation` reads
    them. `summary` returns one vector in place of those.
    """
    forward: Any = scripted.forward
    schema = forward.schema.arguments[1 : len(inputs) + 1]
    parameters = ", ".join(f"{one.name}: {one.type.annotation_str}" for one in schema)
    lines = [f"def {OBSERVE}(self, {parameters}):"]
    for name in names:
        layer = _path(name)
        lines += [
            f"    {layer}.{PREFIX}calls = 0",
            f"    {layer}.{PREFIX}codes.clear()",
            f"    {layer}.{PREFIX}found.clear()",
        ]
    lines += [
        f"    result = self.forward({', '.join(one.name for one in schema)})",
        "    codes = torch.jit.annotate(List[List[int]], [])",
        "    found = torch.jit.annotate(List[List[Tensor]], [])",
    ]
    for name in names:
        layer = _path(name)
        lines += [
            f"    codes.append({layer}.{PREFIX}codes)",
            f"    found.append({layer}.{PREFIX}found)",
        ]
    lines += ["    return result, codes, found", ""]
    scripted.define("\n".join(lines))
    arguments = ", ".join(one.name for one in schema)
    scripted.define(
        f"def {SUMMARY}(self, {parameters}):\n"
        f"    result, codes, found = self.{OBSERVE}({arguments})\n"
        "    flat = torch.jit.annotate(List[Tensor], [])\n"
        "    for layer in found:\n"
        "        flat.extend(layer)\n"
        "    joined = torch.cat(flat) if len(flat) > 0 else torch.zeros([0])\n"
        "    return result, codes, joined\n"
    )


def _path(name: str) -> str:
    expression = "self"
    for part in name.split("."):
        expression = f"getattr({expression}, {part!r})"
    return expression


def _hooked_class(kind: type[nn.Module], layer: Hookable) -> type:
    original = f"{PREFIX}forward"
    if kind is _Enclosed:
        names = ", ".join(name for name, _ in layer.arguments)
        source = f"def {original}{layer.signature}:\n    return self.scripted({names})\n"
        inner = compile_function(source, original, kind, _NAMESPACE)
    elif issubclass(kind, nn.RNNBase) or opens(kind):
        inner = rewritten(kind, original, layer.signature)
    else:
        inner = renamed(kind.forward, original)
    return type(
        kind.__name__,
        (kind,),
        {
            "forward": compile_function(_forward_source(layer), "forward", kind, _NAMESPACE),
            original: inner,
            "__module__": kind.__module__,
        },
    )


def _forward_source(layer: Hookable) -> str:
    names = ", ".join(name for name, _ in layer.arguments)
    looks = [line for name, kind in layer.arguments for line in _look(kind, name)]
    lines = [
        f"def forward{layer.signature}:",
        "    finite = 1",
        # Before the call: a layer may work in place.
        f"    if self.{PREFIX}mode == {INSPECT}:",
        *(f"        {line}" for line in looks or ["pass"]),
        f"    output = self.{PREFIX}forward({names})",
        f"    if self.{PREFIX}mode != {OFF}:",
        "        part = 0",
        *(f"        {line}" for line in _record(layer.result, "output")),
        f"        self.{PREFIX}calls += 1",
        # The next layer may work in place; what is recorded is the tensor before that.
        f"        if self.{PREFIX}mode == {GRADIENT}:",
        f"            output = {rebuilt(layer.result, 'output', _clone)}",
        "    return output",
        "",
    ]
    return "\n".join(lines)


def _look(kind: Any, value: str) -> Iterator[str]:
    """Write the lines that set `finite` to 0 where a value of an argument is not finite."""
    yield from _leaves(kind, value, lambda leaf: [f"if not is_finite({leaf}):", "    finite = 0"])


def _record(kind: Any, value: str) -> Iterator[str]:
    """Write the lines that record one value of a layer's output, in `formats.flatten`'s order."""
    codes, found = f"self.{PREFIX}codes", f"self.{PREFIX}found"

    def record(leaf: str) -> list[str]:
        return [
            f"{codes}.extend([self.{PREFIX}calls, part, finite])",
            f"axis = self.{PREFIX}axes[part] if part < len(self.{PREFIX}axes) else -1",
            f"if self.{PREFIX}mode == {STATISTICS}:",
            f"    summarise_rows({leaf}, axis, {found}, {codes})",
            f"elif self.{PREFIX}mode == {INSPECT}:",
            f"    inspect_rows({leaf}, axis, {found}, {codes})",
            f"elif self.{PREFIX}mode == {GRADIENT}:",
            f"    {codes}.extend([0, 0])",
            f"    {found}.append({leaf})",
            "else:",
            f"    {codes}.extend([0, 0])",
            # A copy: the next layer may write to it in place.
            f"    {found}.append({leaf}.clone())",
            "part += 1",
        ]

    yield from _leaves(kind, value, record, other="part += 1")


def _clone(value: str) -> str:
    return f"{value}.clone()"


def rebuilt(kind: Any, value: str, write: Callable[[str], str], depth: int = 0) -> str:
    """Write an expression of a value put together again, with something done to its tensors.

    What TorchScript cannot put together again in an expression (a named tuple, an optional part)
    stays itself.

    Args:
        kind: the value's type.
        value: an expression of it.
        write: given the expression of a tensor, what stands there instead.
        depth: how many loops there are around it.
    """
    shape = kind.kind()
    if shape == "TensorType":
        return write(value)
    if shape == "TupleType" and not kind.annotation_str.startswith("__torch__"):
        parts = [
            rebuilt(element, f"{value}[{position}]", write, depth)
            for position, element in enumerate(kind.elements())
        ]
        return f"({', '.join(parts)},)" if parts else value
    if shape == "ListType":
        item = f"item{depth}"
        element = rebuilt(kind.getElementType(), item, write, depth + 1)
        return f"[{element} for {item} in {value}]"
    if shape == "DictType":
        key, item = f"key{depth}", f"item{depth}"
        element = rebuilt(kind.getValueType(), item, write, depth + 1)
        return f"{{{key}: {element} for {key}, {item} in {value}.items()}}"
    return value


def _leaves(
    kind: Any, value: str, lines: Callable[[str], list[str]], other: str = "pass"
) -> Iterator[str]:
    """Write lines for each tensor in a value of some type.

    Args:
        kind: the type.
        value: an expression of it.
        lines: what to write for a tensor, given the expression of it.
        other: what to write for a leaf that is no tensor, None included.
    """
    shape = kind.kind()
    name = "".join(letter if letter.isalnum() else "_" for letter in value)
    if shape == "TensorType":
        yield from lines(value)
    elif shape == "TupleType":
        for position, element in enumerate(kind.elements()):
            yield from _leaves(element, f"{value}[{position}]", lines, other)
    elif shape == "OptionalType":
        yield f"{name}_ = {value}"
        yield f"if {name}_ is not None:"
        yield from (
            f"    {line}" for line in _leaves(kind.getElementType(), f"{name}_", lines, other)
        )
        yield "else:"
        yield f"    {other}"
    elif shape in ("ListType", "DictType"):
        element = kind.getElementType() if shape == "ListType" else kind.getValueType()
        yield f"for {name}_item in {value}{'.values()' if shape == 'DictType' else ''}:"
        yield from (f"    {line}" for line in _leaves(element, f"{name}_item", lines, other))
    else:
        yield other
