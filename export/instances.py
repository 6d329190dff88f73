"""Module objects as TorchScript sees them: one for each name, one forward for each class."""

import copy
import types
from typing import Any

from torch import nn
from torch.jit import ScriptModule

from export.errors import ExportError

__all__ = ["adopt_forwards", "renamed", "unshare"]


def unshare(module: nn.Module) -> None:
    """Give every name its own module object, where one object has several names.

    TorchScript compiles such an object once for each of its names; this makes Python agree, so
    that a layer is known by the name it is called by. Parameters and buffers stay shared. What was
    already scripted stays as it is inside.
    """
    seen: set[int] = set()

    def visit(parent: nn.Module) -> None:
        if isinstance(parent, ScriptModule):
            return
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            own = child
            if id(child) in seen:
                own = copy.copy(child)
                if not isinstance(child, ScriptModule):
                    # The parameters stay shared; the tables of hooks and children do not.
                    tables = {k: v.copy() for k, v in vars(child).items() if isinstance(v, dict)}
                    vars(own).update(tables)
                parent._modules[name] = own
            seen.add(id(own))
            visit(own)

    visit(module)


def adopt_forwards(module: nn.Module, where: str) -> None:
    """Give each layer whose forward was replaced on the object a class with that forward.

    TorchScript compiles one forward for all objects of a class that look alike, and would take
    that of another for it.

    Args:
        module: the module; answers as before.
        where: the file it is defined in, for the error.

    Raises:
        ExportError: the new forward is not a method of the layer.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, ScriptModule) or "forward" not in vars(layer):
            continue
        forward = vars(layer)["forward"]
        function = getattr(forward, "__func__", None)
        if getattr(forward, "__self__", None) is not layer or not isinstance(
            function, types.FunctionType
        ):
            raise ExportError(
                f"layer {name or 'of the whole module'} had its forward replaced, by something "
                "that is not a method, which TorchScript cannot compile",
                where=where,
                hint="make a subclass with that forward, and the layer an object of it; or "
                "types.MethodType(function, layer), where the function's first parameter is self",
            )
        kind = type(layer)
        del vars(layer)["forward"]
        members = {"forward": renamed(function, "forward"), "__module__": kind.__module__}
        layer.__class__ = type(kind.__name__, (kind,), members)


def renamed(function: Any, name: str) -> Any:
    """Copy a function under another name: TorchScript names a method after its function."""
    made = types.FunctionType(
        function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__annotations__ = function.__annotations__
    made.__module__ = function.__module__
    made.__dict__.update(function.__dict__)
    return made
