"""Which way the branches of a module's own code went, while it ran on some inputs.

Conditions are found in the bytecode, so that `a if c else b` and `while` count like `if`. That code
is the source of the scripted graph: its branches are the graph's.
"""

import dis
import linecache
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

from torch import nn

__all__ = ["Branch", "BranchWatch", "undecided"]

# A condition made of nothing but these is decided by the signature: rank, dtype and device.
_DECIDED: Final = {"aten::dim", "prim::dtype", "prim::device", "prim::is_cuda", "prim::Constant"}
_COMPUTED: Final = {
    *("aten::eq", "aten::ne", "aten::lt", "aten::le", "aten::gt", "aten::ge", "aten::__not__"),
    *("aten::__and__", "aten::__or__", "aten::__contains__", "prim::ListConstruct", "prim::If"),
    *("aten::is_floating_point", "aten::Bool"),
}
# A condition over several lines begins after the line of its `if`.
_LINES_OF_A_CONDITION: Final = 4


@dataclass(frozen=True)
class Branch:
    """One way out of a condition that no input took.

    Attributes:
        file: the source file.
        line: where the condition is.
        text: the condition's line, stripped.
        when: what the condition would have to be.
        raises: whether it leads to a `raise` or a failed `assert` and nowhere else.
    """

    file: str
    line: int
    text: str
    when: bool
    raises: bool

    def __str__(self) -> str:
        """Return e.g. "model.py:17 (`if x.sum() > 0:`) when that is false"."""
        place = f"{Path(self.file).name}:{self.line}"
        return f"{place} (`{self.text}`) when that is {str(self.when).lower()}"


@dataclass(frozen=True)
class _Way:
    """One way out of a condition; the same for all copies that the compiler makes of it."""

    code: CodeType
    position: tuple[int | None, ...]
    when: bool


State = tuple[frozenset[CodeType], frozenset[_Way]]


class BranchWatch:
    """Records the ways that are taken in a module's own methods, while the context lasts.

    Args:
        module: the eager module; torch's own classes are not watched.
    """

    def __init__(self, module: nn.Module) -> None:
        self._codes: dict[CodeType, dict[tuple[int, int], _Way]] = {}
        for part in module.modules():
            for kind in type(part).__mro__:
                if kind.__module__.startswith("torch.") or kind is object:
                    continue
                for member in vars(kind).values():
                    if isinstance(member, FunctionType):
                        self._codes[member.__code__] = _ways(member.__code__)
        self._entered: set[CodeType] = set()
        self._taken: set[_Way] = set()
        self._before: Any = None

    def __enter__(self) -> "BranchWatch":
        self._before = sys.gettrace()
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def state(self) -> State:
        """Return what was seen so far, to be compared with that of a later time, or restored."""
        return frozenset(self._entered), frozenset(self._taken)

    def restore(self, state: State) -> None:
        """Forget what was seen since: an input without an answer verifies no way it took."""
        self._entered, self._taken = set(state[0]), set(state[1])

    def count(self) -> tuple[int, int]:
        """Return how many ways were taken, and how many there are, in methods that ran."""
        ways = {way for code in self._entered for way in self._codes[code].values()}
        return len(ways & self._taken), len(ways)

    def never(self) -> list[Branch]:
        """Return the ways that were never taken, in methods that ran."""
        found = {}
        for code in self._entered:
            for (_, target), way in self._codes[code].items():
                if way not in self._taken and way not in found:
                    line = way.position[0] or code.co_firstlineno
                    text = linecache.getline(code.co_filename, line).strip()
                    found[way] = Branch(
                        code.co_filename, line, text, way.when, _raises(code, target)
                    )
        return sorted(found.values(), key=lambda branch: (branch.file, branch.line, branch.when))

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code not in self._codes:
            return None
        self._entered.add(code)
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        last = -1
        ways = self._codes[code]

        def on_step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "opcode":
                way = ways.get((last, frame.f_lasti))
                if way is not None:
                    self._taken.add(way)
                last = frame.f_lasti
            return on_step

        return on_step


def _ways(code: CodeType) -> dict[tuple[int, int], _Way]:
    """Map (offset of a conditional jump, offset that it may go to) to the way that this is."""
    ways = {}
    for step, following in pairwise(dis.get_instructions(code)):
        # A loop over modules ends after a number of rounds that no input decides.
        if "JUMP" not in step.opname or "_IF_" not in step.opname:
            continue
        assert step.positions is not None
        position = tuple(step.positions)
        jumps_when = not step.opname.endswith(("IF_FALSE", "IF_FALSE_OR_POP", "IF_NOT_NONE"))
        ways[step.offset, int(step.argval)] = _Way(code, position, jumps_when)
        ways[step.offset, following.offset] = _Way(code, position, not jumps_when)
    return ways


def _raises(code: CodeType, start: int) -> bool:
    for step in dis.get_instructions(code):
        if step.offset < start:
            continue
        if step.opname == "RAISE_VARARGS":
            return True
        if "JUMP" in step.opname or step.opname.startswith("RETURN"):
            return False
    return False


def undecided(branches: Iterable[Branch], graph: Any) -> list[Branch]:
    """Return those branches whose condition a graph still computes from an input's values or sizes.

    Freezing decides conditions on the module's attributes, and the signature those on rank, dtype
    and device. What leads to a `raise` is left out as well: no answer comes from there.

    Args:
        branches: ways that no input took.
        graph: of the frozen module.
    """
    places = set()
    for kind in ("prim::If", "prim::Loop"):
        for node in graph.findAllNodes(kind, recurse=True):
            place = re.search(r'File "([^"]+)", line (\d+)', node.sourceRange())
            if place and not _is_decided(next(iter(node.inputs()))):
                places.add((place[1], int(place[2])))
    return [
        branch
        for branch in branches
        if not branch.raises
        and any((branch.file, branch.line - n) in places for n in range(_LINES_OF_A_CONDITION))
    ]


def _is_decided(value: Any) -> bool:
    node = value.node()
    if node.kind() in _DECIDED:
        return True
    if node.kind() not in _COMPUTED:
        return False
    results = [out for block in node.blocks() for out in block.outputs()]
    return all(map(_is_decided, [*node.inputs(), *results]))
