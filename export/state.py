"""No state between calls: one request's answer must not depend on the requests before it."""

import copy
import re
from typing import Any, Final

import torch
from torch import Tensor, nn

from export.definition import Definition
from export.errors import ExportError

__all__ = ["refuse_assignments", "refuse_change", "refuse_writes", "state"]

_HINT: Final = "keep no state between calls, or leave that part outside the exported module"
_PLAIN: Final = (bool, int, float, str, type(None))


def state(module: nn.Module) -> dict[str, Any]:
    """Return what a module could keep between two calls: tensors, plain values, and containers."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        owned = vars(part) | dict(part.named_parameters(recurse=False))
        owned |= dict(part.named_buffers(recurse=False))
        for key, value in owned.items():
            if not key.startswith("_") and _is_kept(value):
                found[f"{name}.{key}".strip(".")] = _copied(value)
    return found


def _is_kept(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_kept, (*value, *value.values())))
    if isinstance(value, (list, tuple, set)):
        return all(map(_is_kept, value))
    if isinstance(value, Tensor):
        return not value.is_quantized
    return isinstance(value, _PLAIN)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def refuse_change(definition: Definition, before: dict[str, Any]) -> None:
    """Compare a module with its state of an earlier time.

    Raises:
        ExportError: something has changed; names it.
    """
    for name, new in state(definition.module).items():
        if not _equal(before.get(name), new):
            raise ExportError(
                f"the module changes {name!r} when it runs, so that one request's answer could "
                "depend on the ones before",
                where=str(definition.source),
                hint=_HINT,
            )


def _equal(old: Any, new: Any) -> bool:
    if type(old) is not type(new):
        return False
    if isinstance(new, Tensor):
        return old.shape == new.shape and torch.equal(torch.nan_to_num(old), torch.nan_to_num(new))
    if isinstance(new, dict):
        return old.keys() == new.keys() and all(_equal(old[key], new[key]) for key in new)
    if isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(map(_equal, old, new))
    return bool(old == new)


def refuse_assignments(module: Any, definition: Definition) -> None:
    """Refuse a graph that assigns to attributes of the module while it runs.

    Args:
        module: the scripted module, not frozen.
        definition: for the message.

    Raises:
        ExportError: names the attribute and the line.
    """
    graph = module.inlined_graph  # held: its nodes end with it
    for node in graph.findAllNodes("prim::SetAttr", recurse=True):
        # `with torch.no_grad()` keeps its state in an object of its own, made anew in each call.
        if ".grad_mode." not in str(next(node.inputs()).type()):
            raise _refusal("assigns to its own attribute", node, definition)


def refuse_writes(frozen: Any, definition: Definition) -> None:
    """Refuse a graph that writes in place to the module's own tensors or containers.

    Freezing makes constants of all attributes but those that something may write to, by the
    compiler's own alias analysis: it sees a branch that no input takes, too.

    Args:
        frozen: the frozen module.
        definition: for the message.

    Raises:
        ExportError: names the attribute and the line.
    """
    graph = frozen.graph
    aliases = graph.alias_db()
    for node in graph.findAllNodes("prim::GetAttr", recurse=True):
        if aliases.has_writers(node.output()):
            raise _refusal("writes to its own", node, definition)


def _refusal(does: str, node: Any, definition: Definition) -> ExportError:
    place = re.search(r'File "([^"]+)", line (\d+)', node.sourceRange())
    return ExportError(
        f"the module {does} {node.s('name')!r} when it runs, be it for some inputs only, so that "
        "one request's answer could depend on the ones before",
        where=f"{place[1]}:{place[2]}" if place else str(definition.source),
        hint=_HINT,
    )
