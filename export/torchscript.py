"""`torch.jit.script` and `torch.jit.trace`, with errors that name file, line and remedy."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from export.custom_functions import function_calls
from export.definition import Definition
from export.errors import ExportError
from export.refusals import hook_at_fault

__all__ = ["Compiled", "Method", "compile_module", "save"]

Method = Literal["script", "trace"]

_TORCH: Final = Path(torch.__file__).parent

_REWRITE: Final = (
    "TorchScript cannot save a torch.autograd.Function. Write 'forward f, backward as g' as "
    "f(x).detach() + (g(x) - g(x).detach()); with_gradient_of of models/gradients.py does that"
)

# What the compiler says → what to do. Searched in order in the text of its error.
_HINTS: Final = (
    (
        r"'Tensor' object has no attribute or method 'bool'",
        "TorchScript has no Tensor.bool(): write .to(torch.bool)",
    ),
    (
        r"'Tensor' object has no attribute or method 'bfloat16'",
        "TorchScript has no Tensor.bfloat16(): write .to(torch.bfloat16)",
    ),
    (
        r"'Tensor' object has no attribute or method",
        "a tensor has fewer methods in TorchScript than in Python, and nothing of NumPy: write it "
        "with functions of torch",
    ),
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
            return Compiled(torch.jit.script(definition.module))
        return _trace(definition.module, definition.examples[0])
    except Exception as error:
        raise hook_at_fault(definition, str(error)) or _compile_error(error, definition) from error


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
        if not own and "Converting a tensor to a" in str(warning.message):
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
    if _REWRITE in hint or _takes_one_tensor(definition, text, where):
        return _function_error(definition, text, what, where, hint)
    return ExportError(f"TorchScript refuses: {what.rstrip(':')}", where=where, hint=hint)


def _takes_one_tensor(definition: Definition, text: str, where: str) -> bool:
    """Tell whether the compiler stopped at a Function's call, which it takes for one tensor."""
    if not re.search(r"actually of type Tensor|Tensor cannot be used as a tuple", text):
        return False
    calls = function_calls(definition.module)
    return any(call.where == where or call.outputs > 1 for call in calls)


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
