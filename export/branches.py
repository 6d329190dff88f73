"""Which way the branches of a module's code went, while it ran on some inputs.

Ways are found in the bytecode, so that `a if c else b` and loops count like `if`, and named by the
source. That code is the source of the scripted graph: its branches are the graph's.
"""

import dis
import math
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, Final

import torch

from export.conditions import Source, SourceCondition, Span
from formats.certificate import Condition

__all__ = ["Branch", "BranchWatch", "conditions", "open_places", "undecided"]

# What the signature decides: rank, dtype and device.
_DECIDED: Final = {
    *("aten::dim", "prim::dtype", "prim::device", "prim::layout", "prim::is_cuda"),
    *("aten::is_floating_point", "aten::is_complex", "prim::requires_grad", "prim::Constant"),
}
# What is decided if all that it is computed from is.
_COMPUTED: Final = {
    *("aten::eq", "aten::ne", "aten::lt", "aten::le", "aten::gt", "aten::ge", "aten::__not__"),
    *("aten::__and__", "aten::__or__", "aten::__contains__", "prim::ListConstruct", "prim::If"),
    *("aten::add", "aten::sub", "aten::mul", "aten::neg", "aten::Bool"),
}
_IS_NONE: Final = {"aten::__is__", "aten::__isnot__"}
_SIZES: Final = {"aten::size", "aten::len", "aten::numel"}
# The size of what these return depends on an input's values.
_VARYING: Final = {
    *("aten::nonzero", "aten::nonzero_numpy", "aten::argwhere", "aten::masked_select"),
    *("aten::index", "aten::unique_dim", "aten::_unique", "aten::_unique2"),
    *("aten::unique_consecutive", "aten::repeat_interleave", "aten::bincount"),
}
_CHANGES_LENGTH: Final = {
    *("aten::append", "aten::extend", "aten::insert", "aten::pop", "aten::remove", "aten::clear"),
}

_CHANGES: Final = {*_CHANGES_LENGTH, "aten::_set_item"}
_PLAIN: Final = {"BoolType", "IntType", "FloatType", "StringType", "NoneType"}

# What comes between a value and the jump on it, for Python's own ends.
_COPIES: Final = {"COPY", "NOP", "TO_BOOL"}

_ROOMS: Final = Path(__file__).parent.parent
_LEFT_OUT: Final = (
    Path(torch.__file__).parent,
    *(_ROOMS / room for room in ("export", "engine", "formats")),
)
_STANDARD_LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
_INSTALLED: Final = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Branch:
    """One way out of a condition.

    Attributes:
        source: the condition.
        when: what the condition is on this way; of a `for`, whether it has a round.
        inputs: how many inputs took it.
        raises: whether it leads to a `raise` or a failed `assert` and nowhere else.
    """

    source: SourceCondition
    when: bool
    inputs: int
    raises: bool

    @property
    def condition(self) -> str:
        """The condition and its place, e.g. "model.py:17 (`if x.sum() > 0:`)"."""
        source = self.source
        rounds = " has a round" if source.loop else ""
        return f"{Path(source.file).name}:{source.span[0]} (`{source.text}`{rounds})"

    def __str__(self) -> str:
        """Return e.g. "model.py:17 (`if x.sum() > 0:`) when that is false"."""
        return f"{self.condition} when that is {str(self.when).lower()}"


@dataclass(frozen=True)
class _Way:
    """One way out of a condition; the same for all copies that the compiler makes of it."""

    source: SourceCondition
    when: bool
    raises: bool = field(compare=False)


_Ways = dict[tuple[int, int], _Way]


class Seen:
    """What one run of a module entered, and which ways it took."""

    def __init__(self) -> None:
        self.entered: set[CodeType] = set()
        self.taken: set[_Way] = set()


class BranchWatch:
    """Knows the ways through the code that a module runs, and how many inputs took each.

    That is the Python code that TorchScript could compile: not torch's own nor the standard
    library's, and of installed packages only what knows torch.
    """

    def __init__(self) -> None:
        self._codes: dict[CodeType, _Ways | None] = {}
        self._sources: dict[str, Source] = {}
        self._entered: set[CodeType] = set()
        self._inputs: Counter[_Way] = Counter()

    @contextmanager
    def one_input(self) -> Iterator[Seen]:
        """Record what runs while the context lasts, for `keep`."""
        seen = Seen()
        before = sys.gettrace()
        # From Python 3.12 on, tracing begins with steps only if a frame asked for them before.
        sys._getframe().f_trace_opcodes = True
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

    def constants(self) -> list[float]:
        """Return the numbers in the functions that ran, sorted: what conditions compare with."""
        found = set()
        for code in self._entered:
            for value in code.co_consts:
                if type(value) in (int, float) and math.isfinite(value):
                    found.add(float(value))
        return sorted(found | {-number for number in found})

    def branches(self) -> list[Branch]:
        """Return the ways there are in functions that ran."""
        ways = {way for code in self._entered for way in (self._codes[code] or {}).values()}
        found = [Branch(way.source, way.when, self._inputs[way], way.raises) for way in ways]
        return sorted(found, key=lambda one: (one.source.file, one.source.span, one.when))

    def never(self) -> list[Branch]:
        """Return the ways that were never taken, in functions that ran, and that an input may take.

        What the module's attributes and the inputs' types decide is left out.
        """
        return [way for way in self.branches() if not way.inputs and not way.source.fixed]

    def _on_call(self, seen: Seen, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code not in self._codes:
            self._codes[code] = self._ways(code) if _is_watched(frame) else None
        ways = self._codes[code]
        if ways is None:
            return None
        seen.entered.add(code)
        if not ways:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        before = last = -1

        def on_step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal before, last
            if event == "opcode":
                way = ways.get((last, frame.f_lasti))
                # A loop ends after each of its rounds; it had none if it ends at once.
                if way is not None and (not way.source.loop or way.when or before < last):
                    seen.taken.add(way)
                before, last = last, frame.f_lasti
            elif event == "exception":
                last = -1
            return on_step

        return on_step

    def _ways(self, code: CodeType) -> _Ways:
        file = code.co_filename
        if file not in self._sources:
            self._sources[file] = Source(file)
        return _ways(code, self._sources[file])


def _is_watched(frame: FrameType) -> bool:
    file = Path(frame.f_code.co_filename)
    if str(file).startswith("<frozen") or any(map(file.is_relative_to, _LEFT_OUT)):
        return False
    if _INSTALLED.isdisjoint(file.parts):
        return not file.is_relative_to(_STANDARD_LIBRARY)
    return any(map(_is_of_torch, frame.f_globals.values()))


def _is_of_torch(value: object) -> bool:
    if isinstance(value, ModuleType):
        return value.__name__.partition(".")[0] == "torch"
    return isinstance(value, (type, FunctionType)) and value.__module__.startswith("torch")


@dataclass(frozen=True)
class _Step:
    """An instruction.

    Attributes:
        name: as `dis` calls it.
        offset: where it is.
        entry: where what extends its argument begins; jumps lead there, and traces stop there.
        span: of the source that it is for.
        target: where it may jump to.
    """

    name: str
    offset: int
    entry: int
    span: Span | None
    target: int | None


def _steps(code: CodeType) -> list[_Step]:
    steps = []
    entry = None
    for one in dis.get_instructions(code):
        entry = one.offset if entry is None else entry
        if one.opname == "EXTENDED_ARG":
            continue
        line, last, start, end = one.positions or (None,) * 4
        span = None
        if line is not None and last is not None and start is not None and end is not None:
            span = (line, start, last, end)
        target = one.argval if one.opcode in dis.hasjrel or one.opcode in dis.hasjabs else None
        steps.append(_Step(one.opname, one.offset, entry, span, target))
        entry = None
    return steps


def _ways(code: CodeType, source: Source) -> _Ways:
    """Map (offset of a conditional jump, offset that it may go to) to the way that this is."""
    steps = _steps(code)
    numbers = {step.entry: number for number, step in enumerate(steps)}
    ways: _Ways = {}
    for number, step in enumerate(steps):
        if step.target is None:
            continue
        condition = _condition(steps[: number + 1], source)
        if condition is None:
            continue
        target = numbers[step.target]
        jumps_when = _jumps_when(step.name, condition)
        # From Python 3.12 on, a loop that ends leaves out what its jump leads to.
        left_out = 2 if condition.loop else 0
        for when, first, last in (
            (jumps_when, target, target + left_out),
            (not jumps_when, number + 1, number + 1),
        ):
            way = _Way(condition, when, _raises(steps[first:]))
            for end in steps[first : last + 1]:
                for start, stop in product((step.entry, step.offset), (end.entry, end.offset)):
                    ways[start, stop] = way
    return ways


def _condition(steps: list[_Step], source: Source) -> SourceCondition | None:
    """Return the condition that the last of some steps jumps on."""
    *before, jump = steps
    if jump.name == "FOR_ITER":
        return source.loop(jump.span) if jump.span else None
    if "_IF_" not in jump.name:
        return None
    # The jump itself is for the whole of `a and b`; what computed the value is for a part.
    spans = [step.span for step in reversed(before) if step.name not in _COPIES and step.span]
    if not spans:
        return None
    operand = next((span for span in spans if span != spans[0]), spans[0])
    if source.known:
        return source.condition(spans[0], operand)
    text = f"the condition in column {spans[0][1] + 1}"
    return SourceCondition(source.file, spans[0], loop=False, text=text)


def _jumps_when(name: str, condition: SourceCondition) -> bool:
    if name.endswith("NONE"):
        return (condition.when_none is not False) is not name.endswith("NOT_NONE")
    return not (condition.loop or name.endswith(("IF_FALSE", "IF_FALSE_OR_POP")))


def _raises(steps: Iterable[_Step]) -> bool:
    for step in steps:
        if step.name == "RAISE_VARARGS":
            return True
        if "JUMP" in step.name or step.name.startswith("RETURN"):
            return False
    return False


def undecided(branches: Iterable[Branch], graph: Any | None) -> list[Branch]:
    """Return those branches whose condition a graph still computes from an input's values or sizes.

    Freezing decides conditions on the module's attributes, and the signature those on rank, dtype
    and device, and whether an input is None. What leads to a `raise` is left out as well: no answer
    comes from there.

    Args:
        branches: ways of the eager module.
        graph: of the frozen module; None for a trace, which has no conditions: those that an input
            may decide, as far as the source tells, are returned.
    """
    branches = list(branches)
    kept = _may_depend(branches) if graph is None else _in_graph(branches, graph)
    return [branch for branch in branches if branch.source in kept and not branch.raises]


def _may_depend(branches: list[Branch]) -> set[SourceCondition]:
    # What was never reached lies behind an untaken way that is named, or that no input takes.
    reached = {one.source for one in branches if one.inputs}
    # A loop that has a round for one input mostly has one for all: its body is not unverified.
    bodies = {one.source for one in branches if one.source.loop and one.when and not one.inputs}
    return {
        one.source
        for one in branches
        if one.source in reached
        and not one.source.fixed
        and one.source.when_none is None
        and (not one.source.loop or one.source in bodies)
    }


def open_places(graph: Any) -> dict[bool, set[tuple[str, int, int]]]:
    """Return where a graph's undecided conditions come from: file, line, column; loops by True."""
    decided = _Decided(graph)
    places: dict[bool, set[tuple[str, int, int]]] = {False: set(), True: set()}
    for node in graph.findAllNodes("prim::If", recurse=True):
        if not decided.condition(node.inputsAt(0)):
            places[False] |= _place(node)
    for node in graph.findAllNodes("prim::Loop", recurse=True):
        again = next(iter(next(iter(node.blocks())).outputs()))
        if not (decided.condition(node.inputsAt(1)) and decided.condition(again)):
            places[False] |= _place(node)
        if not decided.number(node.inputsAt(0)):
            places[True] |= _place(node)
    return places


def _in_graph(branches: list[Branch], graph: Any) -> set[SourceCondition]:
    decided = _Decided(graph)
    places = open_places(graph)
    optional = set()
    for kind in _IS_NONE:
        for node in graph.findAllNodes(kind, recurse=True):
            if not decided.condition(node.output()):
                optional |= {file for file, _, _ in _place(node)}
    known = {(one.source.file, *place) for one in branches for place in one.source.places}
    kept = set()
    for source in {branch.source for branch in branches}:
        there = places[source.loop]
        lines = {place[:2] for place in there - known}
        mine = {(source.file, *place) for place in source.places}
        if mine.isdisjoint(there) and lines.isdisjoint(place[:2] for place in mine):
            continue
        # The graph decides a part of a condition along with the others.
        none = source.when_none is not None and source.file not in optional
        if source.alone or not (source.fixed or none):
            kept.add(source)
    return kept


def _place(node: Any) -> set[tuple[str, int, int]]:
    found = re.search(r"# (\S.*):(\d+):(\d+)$", str(node).partition("\n")[0])
    return {(found[1], int(found[2]), int(found[3]))} if found else set()


class _Decided:
    """What is the same in a graph for all inputs of a signature."""

    def __init__(self, graph: Any) -> None:
        self._inputs = {value.debugName() for value in graph.inputs()}
        self._numbers: dict[str, bool] = {}

    def condition(self, value: Any) -> bool:
        """Whether a condition is; not if it is computed from values or sizes."""
        node = value.node()
        if node.kind() in _IS_NONE:
            return all(map(self._none, node.inputs()))
        if node.kind() == "prim::Param":
            # Only tensors are inputs; what else has a default keeps it.
            return self._is_input(value) and value.type().kind() in _PLAIN
        if node.kind() == "aten::len":
            return self._length(node.inputsAt(0))
        if node.kind() in _DECIDED:
            return True
        return node.kind() in _COMPUTED and all(map(self.condition, _sources(value)))

    def _none(self, value: Any) -> bool:
        """Whether it is decided that something is None."""
        node = value.node()
        if node.kind() == "prim::Param":
            return self._is_input(value)
        if node.kind() == "prim::If":
            decides, *outs = _sources(value)
            return self.condition(decides) and all(map(self._none, outs))
        return node.kind() == "prim::Constant" or bool(value.type().kind() != "OptionalType")

    def number(self, value: Any) -> bool:
        """Whether a number is, or depends on sizes alone."""
        name = value.debugName()
        if name not in self._numbers:
            self._numbers[name] = self._number(value)
        return self._numbers[name]

    def _number(self, value: Any) -> bool:
        node = value.node()
        if node.kind() == "prim::Constant":
            return True
        if node.kind() in _SIZES:
            return self._size(node.inputsAt(0))
        if node.kind() == "prim::Param":
            return self._is_input(value)
        if not list(node.inputs()) or any(use.user.kind() in _CHANGES for use in value.uses()):
            return False
        if any(part.type().kind() == "TensorType" for part in node.inputs()):
            return node.kind() in _DECIDED
        return all(map(self.number, _sources(value)))

    def _size(self, value: Any) -> bool:
        """Whether a tensor's or list's size depends on the sizes of the inputs alone."""
        waiting, met = [value], set()
        while waiting:
            one = waiting.pop()
            if one.debugName() in met:
                continue
            met.add(one.debugName())
            if one.node().kind() in _VARYING or not all(map(self._adds, one.uses())):
                return False
            for part in _sources(one):
                if part.type().kind() in {"IntType", "BoolType"}:
                    if not self.number(part) and part.node().kind() != "prim::If":
                        return False
                elif part.type().kind() in {"TensorType", "ListType", "OptionalType"}:
                    waiting.append(part)
        return True

    def _length(self, value: Any) -> bool:
        """Whether a list has the same length for all inputs, whatever their sizes."""
        if value.node().kind() == "aten::size":
            return True
        known = value.node().kind() == "prim::ListConstruct"
        return known and all(self._adds(use, in_loops=False) for use in value.uses())

    def _adds(self, use: Any, *, in_loops: bool = True) -> bool:
        """Whether a use leaves a list's length alone, or changes it the same for all inputs."""
        if use.user.kind() not in _CHANGES_LENGTH or use.offset:
            return True
        block = use.user.owningBlock()
        while (owner := block.owningNode()) is not None:
            loop = owner.kind() == "prim::Loop"
            if not (in_loops if loop else self.condition(owner.inputsAt(0))):
                return False
            block = owner.owningBlock()
        return True

    def _is_input(self, value: Any) -> bool:
        return value.debugName() in self._inputs


def _sources(value: Any) -> list[Any]:
    """Return what a value is computed from; of an `if`, its condition and then either result."""
    node = value.node()
    blocks = [list(block.outputs()) for block in node.blocks()]
    if node.kind() == "prim::If":
        return [*node.inputs(), *(outs[value.offset()] for outs in blocks)]
    return [*node.inputs(), *(out for outs in blocks for out in outs)]


def conditions(branches: Iterable[Branch]) -> tuple[Condition, ...]:
    """Put the two ways of each condition together, in the order of the source."""
    found: dict[SourceCondition, list[Branch]] = {}
    for branch in branches:
        found.setdefault(branch.source, []).append(branch)
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
