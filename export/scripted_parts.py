"""Parts that were scripted before: no Python runs in them, so nobody counts which way they went."""

import linecache
import re
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.jit import ScriptModule

from export.branches import open_places

__all__ = ["uncounted"]

_TORCH: Final = str(Path(torch.__file__).parent)


def uncounted(module: nn.Module, graph: Any) -> list[str]:
    """Return the conditions in the scripted parts of a module that its graph still decides.

    Those of torch's own functions are left out, as they are elsewhere, and those that only refuse.

    Args:
        module: the eager module.
        graph: of the frozen one.

    Returns:
        Each with its place, e.g. "model.py:17 (`if x.sum() > 0:`)".
    """
    places = open_places(graph)
    still = {place[:2] for ways in places.values() for place in ways}
    found = {}
    for part in module.modules():
        if isinstance(part, ScriptModule) and part._c._has_method("forward"):
            # Held, because its nodes end with it.
            own: Any = part.inlined_graph
            for kind in ("prim::If", "prim::Loop"):
                for node in own.findAllNodes(kind, recurse=True):
                    place = re.search(r'File "([^"]+)", line (\d+)', node.sourceRange())
                    if place is None or place[1].startswith(_TORCH) or _refuses(node):
                        continue
                    file, line = place[1], int(place[2])
                    if (file, line) in still:
                        text = linecache.getline(file, line).strip()
                        found[file, line] = f"{Path(file).name}:{line} (`{text}`)"
    return list(found.values())


def _refuses(node: Any) -> bool:
    inside = (inner for block in node.blocks() for inner in block.nodes())
    return any(inner.kind() == "prim::RaiseException" for inner in inside)
