"""Activations that are called as functions: hooks see modules, so these cannot be observed."""

import ast
import inspect
import textwrap
from typing import Final

from torch import nn

__all__ = ["functional_calls"]

_OWNERS: Final = {"F", "functional", "torch"}
_NAMES: Final = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "hardtanh", "sigmoid", "tanh", "softplus", "softmax", "log_softmax"),
}


def functional_calls(module: nn.Module) -> list[str]:
    """Find calls like `F.relu(...)` in the source of a module's own classes.

    Returns:
        "F.relu at FILE:LINE" for each, in the order of the classes; none where there is no source.
    """
    found = []
    seen: set[type] = set()
    for part in module.modules():
        kind = type(part)
        if kind in seen or kind.__module__.startswith("torch."):
            continue
        seen.add(kind)
        try:
            lines, first = inspect.getsourcelines(kind)
            tree = ast.parse(textwrap.dedent("".join(lines)))
            file = inspect.getsourcefile(kind)
        except (OSError, TypeError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr in _NAMES and owner.rpartition(".")[2] in _OWNERS:
                found.append(f"{owner}.{node.func.attr} at {file}:{first + node.lineno - 1}")
    return found
