"""Parts that were scripted before: no Python runs in them, so nobody counts which way they went."""

import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.jit import ScriptModule

from export.branches import Branch

__all__ = ["uncounted"]

_TORCH: Final = str(Path(torch.__file__).parent)


def uncounted(module: nn.Module) -> list[Branch]:
    """Return the ways out of every condition in the scripted parts of an eager module.

    None is known to have been taken; torch's own functions are left out, as they are elsewhere.
    """
    found: dict[tuple[str, int], Branch] = {}
    for part in module.modules():
        if isinstance(part, ScriptModule) and part._c._has_method("forward"):
            for node in _conditions(part.inlined_graph):
                place = re.search(r'File "([^"]+)", line (\d+)', node.sourceRange())
                if place is None or place[1].startswith(_TORCH) or _refuses(node):
                    continue
                file, line = place[1], int(place[2])
                text = linecache.getline(file, line).strip()
                found[file, line] = Branch(file, line, text, when=True, inputs=0, raises=False)
    return list(found.values())


def _conditions(graph: Any) -> Iterator[Any]:
    for kind in ("prim::If", "prim::Loop"):
        yield from graph.findAllNodes(kind, recurse=True)


def _refuses(node: Any) -> bool:
    inside = (inner for block in node.blocks() for inner in block.nodes())
    return any(inner.kind() == "prim::RaiseException" for inner in inside)
