"""Which way the branches of a module's own code went, while it ran on some inputs.

Conditions are found in the bytecode, so that `a if c else b` and `while` count like `if`. That code
is the source of the scripted graph: its branches are the graph's.
"""

import dis
import linecache
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

from torch import nn

from formats.certificate import Condition

__all__ = ["Branch", "BranchWatch", "conditions", "undecided"]

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
    """One way out of a condition.

    Attributes:
        file: the source file.
        line: where the condition is.
        text: the condition's line, stripped; where that holds several, the condition alone.
        when: what the condition is on this way.
        inputs: how many inputs took it.
        raises: whether it leads to a `raise` or a failed `assert` and nowhere else.
    """

    file: str
    line: int
    text: str
    when: bool
    inputs: int
    raises: bool

    @property
    def condition(self) -> str:
        """The condition and its place, e.g. "model.py:17 (`if x.sum() > 0:`)"."""
        return f"{Path(self.file).name}:{self.line} (`{self.text}`)"

    def __str__(self) -> str:
        """Return e.g. "model.py:17 (`if x.sum() > 0:`) when that is false"."""
        return f"{self.condition} when that is {str(self.when).lower()}"


@dataclass(frozen=True)
class _Way:
    """One way out of a condition; the same for all copies that the compiler makes of it."""

    code: CodeType
    position: tuple[int | None, ...]
    when: bool


class Seen:
    """What one run of a module entered, and which ways it took."""

    def __init__(self) -> None:
        self.entered: set[CodeType] = set()
        self.taken: set[_Way] = set()


class BranchWatch:
    """Knows the ways through a module's own methods, and how many inputs took each.

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
        self._inputs: Counter[_Way] = Counter()

    @contextmanager
    def one_input(self) -> Iterator[Seen]:
        """Record what the module does while the context lasts, for `keep`."""
        seen = Seen()
        before = sys.gettrace()
        sys.settrace(partial(self._on_call, seen))
        try:
            yield seen
        finally:
            sys.settrace(before)

    def keep(self, seen: Seen) -> None:
        """Count what an input took; one without an answer verifies nothing, and is not kept."""
        self._entered |= seen.entered
        self._inputs.update(seen.taken)

    def is_new(self, seen: Seen) -> bool:
        """Whether an input went where none did before."""
        return not (seen.entered <= self._entered and seen.taken <= self._inputs.keys())

    def branches(self) -> list[Branch]:
        """Return the ways there are in methods that ran."""
        found = {}
        for code in self._entered:
            ways = self._codes[code]
            positions = {way.position for way in ways.values()}
            for (_, target), way in ways.items():
                # The compiler makes copies of a condition; the way is the same.
                if way not in found:
                    found[way] = self._branch(way, positions, raises=_raises(code, target))
        return sorted(found.values(), key=lambda branch: (branch.file, branch.line, branch.when))

    def never(self) -> list[Branch]:
        """Return the ways that were never taken, in methods that ran."""
        return [branch for branch in self.branches() if not branch.inputs]

    def _branch(self, way: _Way, positions: set[tuple[int | None, ...]], *, raises: bool) -> Branch:
        line = way.position[0] or way.code.co_firstlineno
        text = linecache.getline(way.code.co_filename, line)
        _, last, start, end = way.position
        if last == line and sum(position[0] == line for position in positions) > 1:
            text = text[start:end]
        file = way.code.co_filename
        text = text.partition("  #")[0].strip()
        return Branch(file, line, text, way.when, self._inputs[way], raises)

    def _on_call(self, seen: Seen, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code not in self._codes:
            return None
        seen.entered.add(code)
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        last = -1
        ways = self._codes[code]

        def on_step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "opcode":
                way = ways.get((last, frame.f_lasti))
                if way is not None:
                    seen.taken.add(way)
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
        branches: ways of the eager module.
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


def conditions(branches: Iterable[Branch]) -> tuple[Condition, ...]:
    """Put the two ways of each condition together, in the order of the source."""
    found: dict[tuple[str, int, str], list[Branch]] = {}
    for branch in branches:
        found.setdefault((branch.file, branch.line, branch.text), []).append(branch)
    return tuple(
        Condition(
            ways[0].condition,
            **{
                f"when_{str(when).lower()}": sum(way.inputs for way in ways if way.when is when)
                if any(way.when is when for way in ways)
                else None
                for when in (True, False)
            },
        )
        for ways in found.values()
    )


def _is_decided(value: Any) -> bool:
    node = value.node()
    if node.kind() in _DECIDED:
        return True
    if node.kind() not in _COMPUTED:
        return False
    results = [out for block in node.blocks() for out in block.outputs()]
    return all(map(_is_decided, [*node.inputs(), *results]))
