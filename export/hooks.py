"""Compiled forward hooks: layers that record what they put out, inside a scripted graph.

A hook registered with `register_forward_hook` compiles only where every call passes every
argument of `forward`, which leaves out attention and whatever else has optional arguments. So a
layer is given a `forward` of its own for the time of the compilation: it calls the original and
then does what a forward hook would. Each layer has a mode that the graph reads: with mode 0,
freezing removes all of it, and the plain graph is the one without hooks.
"""

import copy
import linecache
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from export import statistics
from formats.observation import INSPECT, OFF, STATISTICS

__all__ = ["Hookable", "define_observe", "hookable", "hooked", "unshare"]

SUMMARY: Final = "summary"
"""The same with all vectors joined into one: a single tensor to bring to the host."""

OBSERVE: Final = "observe"
"""The method added to the scripted module: its inputs → (outputs, codes, vectors)."""

_PREFIX: Final = "_vitrine_"
_NAMESPACE: Final = {
    **{name: getattr(typing, name) for name in ("Dict", "List", "Optional", "Tuple", "Any")},
    "torch": torch,
    "Tensor": Tensor,
    "inspect_rows": statistics.inspect_rows,
    "is_finite": statistics.is_finite,
    "summarise_rows": statistics.summarise_rows,
}


class Hookable(typing.NamedTuple):
    """A layer that a hook can be compiled into.

    Attributes:
        name: as `named_modules()` has it.
        header: the parameters of its forward, as TorchScript source.
        arguments: their names.
        result: the type that forward returns.
    """

    name: str
    header: str
    arguments: tuple[str, ...]
    result: Any


def unshare(module: nn.Module) -> None:
    """Give every name its own module object, where one object has several names.

    TorchScript compiles such an object once for each of its names; this makes Python agree, so
    that a layer is known by the name it is called by. Parameters and buffers stay shared.
    """
    seen: set[int] = set()

    def visit(parent: nn.Module) -> None:
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            own = child
            if id(child) in seen:
                own = copy.copy(child)
                # The parameters themselves stay shared; the tables of hooks and children do not.
                tables = {k: v.copy() for k, v in vars(child).items() if isinstance(v, dict)}
                vars(own).update(tables)
                parent._modules[name] = own
            seen.add(id(own))
            visit(own)

    visit(module)


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
    for name, layer in module.named_modules():
        if not name or isinstance(layer, (nn.ModuleList, nn.ModuleDict, nn.ParameterList)):
            continue
        twin = compiled.get(name)
        if twin is None or not twin._c._has_method("forward"):
            kind = type(layer).__name__
            left_out[name] = (
                f"{kind} has several forwards, one for each type of input"
                if isinstance(layer, nn.RNNBase)
                else f"the scripted graph never calls this {kind}"
            )
            continue
        schema = twin.forward.schema
        parameters = [
            f"{one.name}: {one.type.annotation_str}"
            + (f" = {one.default_value!r}" if one.has_default_value() else "")
            for one in schema.arguments[1:]
        ]
        arguments = tuple(one.name for one in schema.arguments[1:])
        found.append(Hookable(name, ", ".join(parameters), arguments, schema.returns[0].type))
    return found, left_out


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
    try:
        for layer in layers:
            part = parts[layer.name]
            kind = type(part)
            key = (kind, f"{layer.header} -> {layer.result.annotation_str}")
            if key not in classes:
                classes[key] = _hooked_class(kind, layer, len(classes))
            originals.append((part, kind))
            part.__class__ = classes[key]
            part._vitrine_mode = 0
            part._vitrine_axes = list(axes.get(layer.name, ())) or [-1]
            part._vitrine_calls = 0
            part._vitrine_codes = torch.jit.Attribute([], list[int])
            part._vitrine_found = torch.jit.Attribute([], list[Tensor])
        yield
    finally:
        for part, kind in originals:
            part.__class__ = kind
            for name in [name for name in vars(part) if name.startswith(_PREFIX)]:
                delattr(part, name)


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
            f"    {layer}.{_PREFIX}calls = 0",
            f"    {layer}.{_PREFIX}codes.clear()",
            f"    {layer}.{_PREFIX}found.clear()",
        ]
    lines += [
        f"    result = self.forward({', '.join(one.name for one in schema)})",
        "    codes = torch.jit.annotate(List[List[int]], [])",
        "    found = torch.jit.annotate(List[List[Tensor]], [])",
    ]
    for name in names:
        layer = _path(name)
        lines += [
            f"    codes.append({layer}.{_PREFIX}codes)",
            f"    found.append({layer}.{_PREFIX}found)",
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


def _hooked_class(kind: type, layer: Hookable, number: int) -> type:
    source = _forward_source(layer)
    file = f"<vitrine hook {number} on {kind.__name__}>"
    # TorchScript reads the source of what it compiles, and looks for it here.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace = dict(_NAMESPACE)
    exec(compile(source, file, "exec"), namespace)  # noqa: S102 (the source is made above)
    return type(
        kind.__name__,
        (kind,),
        {
            "forward": namespace["forward"],
            f"{_PREFIX}forward": _renamed(kind.forward, f"{_PREFIX}forward"),  # type: ignore[attr-defined]
            "__module__": kind.__module__,
        },
    )


def _renamed(function: Any, name: str) -> Any:
    """Copy a function under another name: TorchScript names a method after its function."""
    made = types.FunctionType(
        function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__annotations__ = function.__annotations__
    made.__module__ = function.__module__
    made.__dict__.update(function.__dict__)
    return made


def _forward_source(layer: Hookable) -> str:
    finite = " and ".join(f"is_finite({name})" for name in _tensors(layer.header)) or "True"
    lines = [
        f"def forward(self, {layer.header}) -> {layer.result.annotation_str}:",
        f"    output = self.{_PREFIX}forward({', '.join(layer.arguments)})",
        f"    if self.{_PREFIX}mode != {OFF}:",
        "        part = 0",
        "        finite = 1",
        f"        if self.{_PREFIX}mode == {INSPECT} and not ({finite}):",
        "            finite = 0",
        *(f"        {line}" for line in _record(layer.result, "output")),
        f"        self.{_PREFIX}calls += 1",
        "    return output",
        "",
    ]
    return "\n".join(lines)


def _tensors(header: str) -> list[str]:
    """Return the names of the parameters that are tensors."""
    pairs = [parameter.partition(" = ")[0].partition(": ") for parameter in _split(header)]
    return [name for name, _, kind in pairs if kind in ("Tensor", "Optional[Tensor]")]


def _split(header: str) -> list[str]:
    """Split parameters at the commas that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(header):
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            parts.append(header[start:position].strip())
            start = position + 1
    return [part for part in [*parts, header[start:].strip()] if part]


def _record(kind: Any, value: str) -> Iterator[str]:
    """Write the lines that record one value of a layer's output, in `formats.flatten`'s order."""
    shape = kind.kind()
    if shape == "TensorType":
        codes, found = f"self.{_PREFIX}codes", f"self.{_PREFIX}found"
        yield f"{codes}.extend([self.{_PREFIX}calls, part, finite])"
        yield f"axis = self.{_PREFIX}axes[part] if part < len(self.{_PREFIX}axes) else -1"
        yield f"if self.{_PREFIX}mode == {STATISTICS}:"
        yield f"    summarise_rows({value}, axis, {found}, {codes})"
        yield f"elif self.{_PREFIX}mode == {INSPECT}:"
        yield f"    inspect_rows({value}, axis, {found}, {codes})"
        yield "else:"
        yield f"    {codes}.extend([0, 0])"
        yield f"    {found}.append({value})"
        yield "part += 1"
    elif shape == "TupleType":
        for position, element in enumerate(kind.elements()):
            yield from _record(element, f"{value}[{position}]")
    elif shape == "OptionalType":
        name = "".join(letter if letter.isalnum() else "_" for letter in value)
        yield f"{name} = {value}"
        yield f"if {name} is not None:"
        yield from (f"    {line}" for line in _record(kind.getElementType(), name))
        yield "else:"
        yield "    part += 1"
    elif shape in ("ListType", "DictType"):
        element = kind.getElementType() if shape == "ListType" else kind.getValueType()
        name = "".join(letter if letter.isalnum() else "_" for letter in value) + "_item"
        yield f"for {name} in {value}{'.values()' if shape == 'DictType' else ''}:"
        yield from (f"    {line}" for line in _record(element, name))
    else:
        yield "part += 1"
