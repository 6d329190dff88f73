"""`torch.jit.script` and `torch.jit.trace`, with errors that name file, line and remedy."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]
from torch.nn.utils.parametrize import is_parametrized

from export.custom_functions import function_calls
from export.definition import Definition
from export.errors import ExportError

__all__ = ["Compiled", "Method", "compile_module", "refuse_state", "save"]

Method = Literal["script", "trace"]

_TORCH: Final = Path(torch.__file__).parent

_REWRITE: Final = (
    "TorchScript cannot save a torch.autograd.Function. Write 'forward f, backward as g' as "
    "f(x).detach() + (g(x) - g(x).detach()); with_gradient_of of models/gradients.py does that"
)

# What the compiler says → what to do. Searched in order in the text of its error.
_HINTS: Final = (
    (
        r"Variable 'hx' previously had type",
        "TorchScript compiles nn.LSTM, nn.GRU and nn.RNN under their own names only: keep one as "
        "a member of the module instead of inheriting from it",
    ),
    (
        r"[Ff]unction exists as an attribute|Lambda",
        "TorchScript cannot compile this function: make it a method of the module, with types, "
        "instead of a lambda or a function kept in an attribute",
    ),
    (
        r"Python type: 'method'|Python type: 'builtin_function_or_method'",
        "TorchScript knows no function kept in an attribute, a Function.apply least of all; "
        + _REWRITE,
    ),
    (r"Could not export Python function call|autograd\.Function|PythonOp", _REWRITE),
    (
        r"Expected a value of type 'Tensor|of type Tensor.*but instead found",
        "TorchScript takes an argument without a type for a Tensor: annotate it, e.g. `n: int`",
    ),
    (
        r"undefined value|[Pp]ython value of type",
        "give it a type TorchScript knows, or make it an "
        "attribute of the module that is set in __init__",
    ),
    (
        r"has no attribute|attribute .* failed to be compiled|failed to convert Python type",
        "set it in __init__ with one fixed type; TorchScript ignores attributes of other types",
    ),
    (
        r"\*\*kwargs|variable number of arguments|Compiled functions can't take",
        "spell the parameters of forward out",
    ),
    (
        r"isn't supported|aren't supported|not supported|[Uu]nsupported|ListComp|Try",
        "rewrite that line in the part of Python that TorchScript compiles",
    ),
)
_GENERIC: Final = (
    "rewrite that line for TorchScript; or use --trace if no branch of the model depends on data"
)


@dataclass(frozen=True)
class Compiled:
    """A compiled module.

    Attributes:
        module: in TorchScript.
        baked: why the module is not to be trusted, if the trace met a value that depends on the
            data and took it for a constant.
    """

    module: torch.jit.ScriptModule
    baked: ExportError | None = None


def compile_module(definition: Definition, method: Method) -> Compiled:
    """Compile a module.

    Args:
        definition: its module and, for tracing, its first example.
        method: "script" keeps control flow that depends on data; "trace" records one path.

    Raises:
        ExportError: the compiler refuses; names the file and line it stopped at.
    """
    try:
        if method == "script":
            _refuse_parametrizations(definition)
            return Compiled(torch.jit.script(definition.module))
        return _trace(definition.module, definition.examples[0])
    except ExportError:
        raise
    except Exception as error:
        raise _compile_error(error, definition) from error


def _refuse_parametrizations(definition: Definition) -> None:
    # The compiler's own words would be "integer modulo by zero".
    for name, part in definition.module.named_modules():
        if is_parametrized(part):
            tensor = next(iter(part.parametrizations))
            raise ExportError(
                f"layer {name or 'of the whole module'} computes its {tensor} anew in each call "
                "(torch.nn.utils.parametrize), which TorchScript cannot compile",
                where=str(definition.source),
                hint="in build(), after loading the weights: "
                f"parametrize.remove_parametrizations(layer, {tensor!r})",
            )


def refuse_state(module: torch.jit.ScriptModule, definition: Definition) -> None:
    """Refuse a graph that assigns to attributes of the module while it runs.

    Raises:
        ExportError: names the line.
    """
    graph: Any = module.inlined_graph
    for node in graph.findAllNodes("prim::SetAttr", recurse=True):
        # `with torch.no_grad()` keeps its state in an object of its own, made anew in each call.
        if ".grad_mode." in str(next(node.inputs()).type()):
            continue
        place = re.search(r'File "([^"]+)", line (\d+)', node.sourceRange())
        raise ExportError(
            f"the module assigns to its own attribute {node.s('name')!r} when it runs, so that one "
            "request's answer could depend on the ones before",
            where=f"{place[1]}:{place[2]}" if place else str(definition.source),
            hint="keep no state between calls, or leave that part outside the exported module",
        )


def save(module: torch.jit.ScriptModule, path: Path, definition: Definition) -> None:
    """Save the graph that is not frozen: freezing drops `detach`, and gradients with it.

    Raises:
        ExportError: the graph calls Python, as a `torch.autograd.Function` does.
    """
    try:
        module.save(str(path))
    except RuntimeError as error:
        raise _compile_error(error, definition) from error


def _trace(module: nn.Module, example: Sequence[Tensor]) -> Compiled:
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always", TracerWarning)
        traced = torch.jit.trace(
            module, tuple(part.clone() for part in example), strict=False, check_trace=False
        )
    for warning in caught:
        # torch's own layers check shapes that way, which parity verifies; the user's code branches.
        own = Path(warning.filename).is_relative_to(_TORCH)
        if not own and "Converting a tensor to a Python" in str(warning.message):
            baked = ExportError(
                "tracing baked in a value that depends on the data: "
                + str(warning.message).partition(".")[0],
                where=f"{warning.filename}:{warning.lineno}",
                hint="leave --trace out: scripting keeps the branch; --accept-mismatch archives "
                "the trace with this on record",
            )
            return Compiled(traced, baked)
    return Compiled(traced)


def _compile_error(error: Exception, definition: Definition) -> ExportError:
    text = str(error)
    what = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, text)), _GENERIC)
    # The first frame is where the compiler stopped; the ones after it called that code.
    place = re.search(r'File "([^"]+)", line (\d+)', text)
    where = f"{place[1]}:{place[2]}" if place else str(definition.source)
    if _REWRITE in hint:
        return _function_error(definition, text, what, where, hint)
    return ExportError(f"TorchScript refuses: {what.rstrip(':')}", where=where, hint=hint)


def _function_error(
    definition: Definition, text: str, what: str, where: str, hint: str
) -> ExportError:
    calls = function_calls(definition.module)
    # The compiler stops at one; what it names comes first.
    calls.sort(key=lambda call: f"'{call.name}'" not in text)
    if not calls:
        return ExportError(f"TorchScript refuses: {what.rstrip(':')}", where=where, hint=hint)
    first, *more = calls
    others = "".join(f"; so is {call.name!r}, called at {call.where}" for call in more)
    return ExportError(
        f"{first.name!r} ({first.defined}) is a torch.autograd.Function, which TorchScript cannot "
        f"save{others}",
        where=first.where,
        hint=first.rewrite,
    )
