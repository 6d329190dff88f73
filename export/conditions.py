"""The conditions in a source file: where each is, what it says, and where a graph decides it.

`a and b` holds two conditions, `not a` is the condition a, and `a < b < c` holds two. A loop over
something is a condition as well: whether it has a round.
"""

import ast
import linecache
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Place", "Source", "SourceCondition", "Span"]

Place = tuple[int, int]
Span = tuple[int, int, int, int]

# What asking decides: by types, the rank and the module itself / by these or by sizes / by values.
_FIXED, _SIZED, _VALUED = range(3)
_FIXED_ATTRIBUTES: Final = {"ndim", "dtype", "device", "layout", "is_cuda", "requires_grad"}
_FIXED_METHODS: Final = {"dim", "ndimension", "is_floating_point", "is_complex", "get_device"}
_FIXED_FUNCTIONS: Final = {"isinstance", "hasattr", "callable", "type"}
_CHANGING: Final = {"append", "extend", "insert", "add", "update", "pop", "remove", "clear"}
_MEMBERSHIP: Final = (ast.Is, ast.IsNot, ast.In, ast.NotIn)

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class SourceCondition:
    """A condition in a source file.

    Attributes:
        file: the source file.
        span: line and column where it begins and ends, columns in UTF-8 bytes from 0.
        loop: whether it is that a `for` has a round.
        text: its statement's head where it is the whole condition of one; else it alone.
        places: where a compiler says that it, or what it is a part of, is decided.
        alone: whether nothing else decides with it which way is taken.
        fixed: whether no input decides it, but the module's attributes, types and ranks; for a
            loop, these or sizes.
        when_none: of a comparison with None by `is`: whether it is true for None.
    """

    file: str
    span: Span
    loop: bool
    text: str = field(compare=False)
    places: frozenset[Place] = field(default=frozenset(), compare=False)
    alone: bool = field(default=True, compare=False)
    fixed: bool = field(default=False, compare=False)
    when_none: bool | None = field(default=None, compare=False)


class Source:
    """The conditions of a source file.

    Args:
        file: its name; where there is no source, nothing is found.

    Attributes:
        file: its name.
        known: whether there is a source.
    """

    def __init__(self, file: str) -> None:
        linecache.checkcache(file)
        text = "".join(linecache.getlines(file))
        finder = _Finder(file, text)
        with suppress(SyntaxError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            finder.visit(ast.parse(text))
        self.file = file
        self.known = bool(text)
        self._conditions = finder.conditions
        self._loops = finder.loops
        self._parts = finder.parts

    def loop(self, span: Span) -> SourceCondition | None:
        """Return the loop that is, or that is over what is, at a span."""
        return self._loops.get(span)

    def condition(self, span: Span, operand: Span) -> SourceCondition | None:
        """Return the condition that something at a span computes.

        Args:
            span: of the condition, or of a part of it: `x` of `x is None`.
            operand: what was computed before; tells the parts of `a < b < c` from each other.
        """
        found = self._parts.get((span, operand)) or self._conditions.get(span)
        if found is None:
            around = [
                one
                for at, one in self._conditions.items()
                if at[:2] <= span[:2] <= span[2:] <= at[2:]
            ]
            found = max(
                around, key=lambda one: (one.span[:2], -one.span[2], -one.span[3]), default=None
            )
        return found


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, source: str) -> None:
        self.conditions: dict[Span, SourceCondition] = {}
        self.loops: dict[Span, SourceCondition] = {}
        self.parts: dict[tuple[Span, Span], SourceCondition] = {}
        self._file = file
        self._source = source.splitlines(keepends=True)
        self._scopes: list[_Names] = []

    def visit_FunctionDef(self, node: _Function) -> None:
        self._scopes.append(_Names(node))
        self.generic_visit(node)
        self._scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def visit_If(self, node: ast.If | ast.While) -> None:
        line = self._source[node.lineno - 1].encode()[node.col_offset :]
        word = next(word for word in ("elif", "while", "if") if line.startswith(word.encode()))
        self._tests(node.test, {_start(node)}, head=f"{word} {self._text(node.test)}:")
        self.generic_visit(node)

    visit_While = visit_If

    def visit_Assert(self, node: ast.Assert) -> None:
        self._tests(node.test, {_start(node)}, head=f"assert {self._text(node.test)}")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._tests(node.test, {_start(node)})
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for value in node.values[:-1]:
            self._tests(value, {_start(node)}, alone=False)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) > 1:
            self._tests(node, set(), alone=False)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        head = f"for {self._text(node.target)} in {self._text(node.iter)}:"
        self._loop(node, node.iter, head)
        self.generic_visit(node)

    def visit_ListComp(self, node: _Comprehension) -> None:
        for part in node.generators:
            for test in part.ifs:
                self._tests(test, set())
        if len(node.generators) == 1:
            over = node.generators[0].iter
            head = f"for {self._text(node.generators[0].target)} in {self._text(over)}"
            self._loop(node, over, head)
        self.generic_visit(node)

    visit_SetComp = visit_ListComp
    visit_DictComp = visit_ListComp
    visit_GeneratorExp = visit_ListComp

    def visit_match_case(self, node: ast.match_case) -> None:
        if node.guard is not None:
            self._tests(node.guard, set())
        self.generic_visit(node)

    def _tests(
        self, node: ast.expr, places: set[Place], *, head: str = "", alone: bool = True
    ) -> None:
        """Add what decides whether a node is true."""
        match node:
            case ast.BoolOp(values=parts):
                for part in parts:
                    self._tests(part, {*places, _start(node)}, alone=False)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                for part in (test, body, orelse):
                    self._tests(part, {*places, _start(node)}, alone=False)
            # Python compiles `not a in b` as `a not in b`.
            case ast.UnaryOp(op=ast.Not(), operand=ast.Compare(ops=[op])) if isinstance(
                op, _MEMBERSHIP
            ):
                self._test(node, places, head, alone=alone)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._tests(operand, places, alone=alone)
            case ast.Compare(comparators=[_, _, *_]):
                ends = [node.left, *node.comparators]
                for left, op, right in zip(ends, node.ops, ends[1:], strict=False):
                    part = ast.Compare(
                        left,
                        [op],
                        [right],
                        lineno=left.lineno,
                        col_offset=left.col_offset,
                        end_lineno=right.end_lineno,
                        end_col_offset=right.end_col_offset,
                    )
                    self.parts[_span(node), _span(right)] = self._made(
                        part, ast.unparse(part), {*places, _start(node)}, alone=False
                    )
            case _:
                self._test(node, places, head, alone=alone)

    def _test(self, node: ast.expr, places: set[Place], head: str, *, alone: bool) -> None:
        # What is a condition in two ways, as `a or b` in `(a or b) and c`, is first met as a whole.
        self.conditions.setdefault(
            _span(node), self._made(node, head or self._text(node), places, alone=alone)
        )

    def _loop(self, node: ast.For | _Comprehension, over: ast.expr, text: str) -> None:
        loop = SourceCondition(
            self._file,
            _span(node),
            loop=True,
            text=text,
            places=frozenset({_start(node)}),
            fixed=_needed(over, self._scopes) <= _SIZED,
        )
        # In bytecode a loop is where its statement is; from Python 3.12 on, what it is over.
        self.loops[_span(node)] = self.loops[_span(over)] = loop

    def _made(
        self, node: ast.expr, text: str, places: set[Place], *, alone: bool
    ) -> SourceCondition:
        return SourceCondition(
            self._file,
            _span(node),
            loop=False,
            text=text,
            places=frozenset(places),
            alone=alone,
            fixed=_needed(node, self._scopes) == _FIXED,
            when_none=_when_none(node),
        )

    def _text(self, node: ast.expr) -> str:
        line, start, last, end = _span(node)
        if line != last:
            return ast.unparse(node)
        return self._source[line - 1].encode()[start:end].decode()


class _Names:
    """What the names of a function stand for; None where that cannot be told."""

    def __init__(self, function: _Function) -> None:
        self._values: dict[str, list[ast.expr | None]] = {}
        told: set[ast.AST] = set()
        for node in ast.walk(function):
            for target, value in _assigned(node):
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        self._add(part.id, value)
                        told.add(part)
        if getattr(function, "name", "") == "forward":
            # The inputs of a served module are tensors: what has another default keeps it.
            named = [*function.args.posonlyargs, *function.args.args]
            defaults = function.args.defaults
            pairs = [
                *zip(named[len(named) - len(defaults) :], defaults, strict=True),
                *zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True),
            ]
            for argument, default in pairs:
                if isinstance(default, ast.Constant) and default.value is not None:
                    self._add(argument.arg, default)
                    told.add(argument)
        for node in ast.walk(function):
            match node:
                case ast.arg(arg=name) if node not in told:
                    self._add(name, None)
                case ast.Name(id=name, ctx=ast.Store() | ast.Del()) if node not in told:
                    self._add(name, None)
                case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()):
                    self._add(name, None)
                case ast.Attribute(value=ast.Name(id=name), attr=method) if method in _CHANGING:
                    self._add(name, None)

    def _add(self, name: str, value: ast.expr | None) -> None:
        self._values.setdefault(name, []).append(value)

    def values(self, name: str) -> list[ast.expr | None] | None:
        """Return all that a name stands for; None if the function does not bind it."""
        return self._values.get(name)


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                if isinstance(target, (ast.Name, ast.Tuple, ast.List)):
                    yield target, value
        case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
            yield target, value
        case ast.NamedExpr(target=target, value=value):
            yield target, value
        case ast.For(target=target, iter=over) | ast.comprehension(target=target, iter=over):
            yield target, over


def _needed(node: ast.AST, scopes: Sequence[_Names], names: frozenset[str] = frozenset()) -> int:
    """Return what must be known to know a value: _FIXED, _SIZED or _VALUED."""

    def most(nodes: Iterable[ast.AST]) -> int:
        return max((_needed(part, scopes, names) for part in nodes), default=_FIXED)

    match node:
        case ast.Name(id=name):
            return _name_needed(name, scopes, names)
        case ast.Attribute(attr=name) if name in _FIXED_ATTRIBUTES:
            return _FIXED
        case ast.Attribute(value=value, attr="shape"):
            return min(_SIZED, most([value]))
        case ast.Call(func=ast.Attribute(attr=name)) if name in _FIXED_METHODS:
            return _FIXED
        case ast.Call(func=ast.Attribute(value=value, attr="size" | "numel"), args=arguments):
            return max(min(_SIZED, most([value])), most(arguments))
        case ast.Call(func=ast.Name(id=name)) if name in _FIXED_FUNCTIONS:
            return _FIXED
        case ast.Call(func=ast.Name(id="len"), args=[ast.Attribute(attr="shape")]):
            return _FIXED
        case ast.Call(func=ast.Name(id="len"), args=[value]):
            return min(_SIZED, most([value]))
        case ast.Lambda() | ast.Await() | ast.Yield() | ast.YieldFrom():
            return _VALUED
    return most(ast.iter_child_nodes(node))


def _name_needed(name: str, scopes: Sequence[_Names], names: frozenset[str]) -> int:
    if name in {"self", "cls"} or name in names:
        return _FIXED
    for scope in reversed(scopes):
        values = scope.values(name)
        if values is not None:
            inner = names | {name}
            return max(_VALUED if v is None else _needed(v, scopes, inner) for v in values)
    return _FIXED


def _when_none(node: ast.expr) -> bool | None:
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _when_none(operand)
            return None if inner is None else not inner
        case ast.Compare(ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Constant(None)]):
            return isinstance(op, ast.Is)
    return None


def _start(node: ast.stmt | ast.expr) -> Place:
    return node.lineno, node.col_offset


def _span(node: ast.stmt | ast.expr) -> Span:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
