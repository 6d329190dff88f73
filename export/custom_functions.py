"""Calls of a `torch.autograd.Function` in a module's own code, and how to write them instead."""

import ast
import copy
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final

import torch
from torch import nn

__all__ = ["FunctionCall", "function_calls"]

_BLOCKS: Final = "models/gradients.py"
_GENERAL: Final = (
    "write 'forward f, backward as g' as f(x).detach() + (g(x) - g(x).detach()), which is "
    f"with_gradient_of(f(x), g(x)) of {_BLOCKS}"
)


@dataclass(frozen=True)
class FunctionCall:
    """One call of a custom function.

    Attributes:
        name: of the class.
        where: "FILE:LINE" of the call.
        defined: "FILE:LINE" of the class.
        rewrite: what to write instead.
        outputs: how many values its forward returns, as far as its source shows.
    """

    name: str
    where: str
    defined: str
    rewrite: str
    outputs: int = 1


def function_calls(module: nn.Module) -> list[FunctionCall]:
    """Find calls like `Twice.apply(x)` in the methods of a module's own classes.

    Functions that these call are read as well; so are `apply` methods kept under another name.

    Returns:
        The calls, each once, `forward` methods first; none where there is no source.
    """
    found: dict[tuple[str, str], FunctionCall] = {}
    seen: set[Any] = set()
    for part in module.modules():
        methods = [
            member
            for kind in type(part).__mro__
            if not kind.__module__.startswith("torch.")
            for member in vars(kind).values()
            if isinstance(member, FunctionType)
        ]
        for method in sorted(methods, key=lambda one: one.__name__ != "forward"):
            for call in _calls(method, part, seen):
                found.setdefault((call.where, call.name), call)
    return list(found.values())


def _calls(function: FunctionType, part: nn.Module, seen: set[Any]) -> Iterator[FunctionCall]:
    # The same method may call another function in an instance that keeps it as an attribute.
    key = (function, id(part))
    if key in seen or function.__module__.startswith("torch."):
        return
    seen.add(key)
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return
    closed = inspect.getclosurevars(function)
    known = {**closed.globals, **closed.nonlocals, "self": part}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        target = _value(node.func, known)
        kind = getattr(target, "__self__", None)
        if inspect.isclass(kind) and issubclass(kind, torch.autograd.Function):
            if getattr(target, "__name__", "") == "apply":
                where = f"{inspect.getsourcefile(function)}:{first + node.lineno - 1}"
                yield FunctionCall(
                    kind.__name__,
                    where,
                    _place(kind),
                    _rewrite(kind, node, known),
                    _outputs(kind),
                )
        elif isinstance(target, FunctionType):
            yield from _calls(target, part, seen)


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    """Return what a dotted name stands for, or None."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, known)
        return None if owner is None else getattr(owner, node.attr, None)
    return None


def _place(kind: type) -> str:
    try:
        return f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return "an unknown place"


def _outputs(kind: Any) -> int:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError, SyntaxError):
        return 1
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    return max((len(value.elts) for value in values if isinstance(value, ast.Tuple)), default=1)


def _rewrite(kind: type, call: ast.Call, known: dict[str, Any]) -> str:
    general = f"{_GENERAL}; f is what {kind.__name__}.forward returns, g has its backward"
    if _outputs(kind) > 1:
        return f"{general}; once for each of its {_outputs(kind)} outputs"
    forward, backward = _only_result(kind, "forward"), _only_result(kind, "backward")
    if forward is None or backward is None or call.keywords:
        return general
    (names, value), ((incoming, *_), slope) = forward, backward
    given = dict(zip(names, call.args, strict=False))
    kept = _kept(kind, given)
    factor = _factor(slope, incoming)
    if factor is None or not given or (factor.strip("-").startswith("ctx.") and not kept):
        return general
    shown = f"{ast.unparse(call.func)}({', '.join(ast.unparse(part) for part in call.args)})"
    sign, size = ("-", factor[1:]) if factor.startswith("-") else ("", factor)
    number = kept.get(size)
    if number is None or isinstance(_constant(number, known), (int, float)):
        size = size if number is None else ast.unparse(number)
        block = _block(_function_of(value, names[0]), sign, size)
        if block:
            return f"{_GENERAL}; {shown} is {block}"
    first = {incoming: given[names[0]]}
    f, g = _substituted(value, given), _substituted(slope, first | kept)
    return f"{_GENERAL}; {shown} is with_gradient_of({f}, {g})"


def _kept(kind: Any, given: dict[str, ast.expr]) -> dict[str, ast.expr]:
    """Return "ctx.alpha" → the argument that the call gives for it."""
    found = {}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))):
        if isinstance(node, ast.Assign):
            argument = given.get(ast.unparse(node.value))
            if argument is not None:
                found[ast.unparse(node.targets[0])] = argument
    return found


def _constant(node: ast.expr, known: dict[str, Any]) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _value(node, known)


def _only_result(kind: type, method: str) -> tuple[list[str], ast.expr] | None:
    """Return the parameters after `ctx`, and the expression that is all a static method returns."""
    try:
        source = textwrap.dedent(inspect.getsource(getattr(kind, method)))
        tree = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, AttributeError):
        return None
    if not isinstance(tree, ast.FunctionDef) or len(tree.args.args) < 2:
        return None
    # What is kept in ctx changes no value; anything else would have to be followed.
    body = [line for line in tree.body if not _keeps(line)]
    if len(body) != 1 or not isinstance(body[0], ast.Return) or body[0].value is None:
        return None
    value = body[0].value
    if isinstance(value, ast.Tuple):
        value = value.elts[0]
    return [part.arg for part in tree.args.args[1:]], value


def _keeps(line: ast.stmt) -> bool:
    if isinstance(line, ast.Assign):
        return ast.unparse(line.targets[0]).startswith("ctx.")
    # A docstring, or ctx.save_for_backward(...).
    return isinstance(line, ast.Expr) and (
        isinstance(line.value, ast.Constant) or ast.unparse(line.value).startswith("ctx.")
    )


def _factor(node: ast.expr, incoming: str) -> str | None:
    """Return what an incoming gradient is multiplied with: "", "-", "3", "-ctx.alpha", or None."""
    if isinstance(node, ast.Name):
        return "" if node.id == incoming else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _negated(_factor(node.operand, incoming))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
        inner = _factor(node.func.value, incoming)
        return {"neg": _negated(inner), "clone": inner}.get(node.func.attr)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for inside, other in ((node.left, node.right), (node.right, node.left)):
            sign = _factor(inside, incoming)
            number = _number(other)
            if sign in {"", "-"} and number is not None:
                return _negated(number) if sign else number
    return None


def _negated(factor: str | None) -> str | None:
    if factor is None:
        return None
    return factor[1:] if factor.startswith("-") else f"-{factor}"


def _number(node: ast.expr) -> str | None:
    """Return a number, or one kept in ctx, with its sign; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _negated(_number(node.operand))
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return str(node.value)
    text = ast.unparse(node)
    is_kept = isinstance(node, ast.Attribute) and text.startswith("ctx.")
    return text if is_kept and text.count(".") == 1 else None


def _function_of(node: ast.expr, name: str) -> str:
    """Return "identity", "round" or "sign" for what is just that of a parameter, or ""."""
    if isinstance(node, ast.Name):
        return "identity" if node.id == name else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        method, owner = node.func.attr, ast.unparse(node.func.value)
        if owner == name and method in {"clone", "view_as"}:
            return "identity"
        arguments = [ast.unparse(part) for part in node.args]
        if method in {"round", "sign"} and (owner, *arguments) in {(name,), ("torch", name)}:
            return method
    return ""


def _block(function: str, sign: str, size: str) -> str:
    if function == "identity" and sign:
        return f"GradientReversal({size or '1.0'}) of models/gradient_reversal.py"
    if function == "identity" and size:
        return f"GradientScaling({size}) of {_BLOCKS}"
    if function == "round" and not sign + size:
        return f"StraightThroughRound() of {_BLOCKS}"
    if function == "sign" and not sign + size:
        return f'StraightThroughSign(float("inf")) of {_BLOCKS}'
    return ""


def _substituted(node: ast.expr, given: dict[str, ast.expr]) -> str:
    class Put(ast.NodeTransformer):
        def generic_visit(self, found: ast.AST) -> ast.AST:
            if isinstance(found, (ast.Name, ast.Attribute)) and ast.unparse(found) in given:
                return given[ast.unparse(found)]
            return super().generic_visit(found)

    return ast.unparse(Put().visit(copy.deepcopy(node)))
