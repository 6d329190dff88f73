"""Layers of torch whose forward has to be written anew for a hook to be compiled in.

Recurrent layers declare one forward for each type of input, which TorchScript picks by the
call. Transformer layers skip the layers inside them for one fused call, and pack padded rows into a
nested tensor; ordinary forward hooks turn the former off, and so do compiled ones.
"""

import ast
import copy
import inspect
import linecache
import textwrap
import typing
from typing import Any, Final

from torch import Tensor, nn
from torch.jit import ScriptModule

from engine import PREFIX

__all__ = ["OPEN", "compile_function", "opens", "rewritten"]

OPEN: Final = f"self.{PREFIX}open"
"""True while somebody looks inside the layer."""

_TYPES: Final[dict[str, Any]] = {
    **{name: getattr(typing, name) for name in ("Dict", "List", "Optional", "Tuple", "Any")},
    "Tensor": Tensor,
}
"""What the types in a schema are called."""

_SKIPS_LAYERS: Final = "get_fastpath_enabled"
_NESTS_ROWS: Final = "_nested_tensor_from_mask"


def opens(kind: type[nn.Module]) -> bool:
    """Tell whether a kind of layer skips the layers inside it unless it is opened."""
    # Attention has a fused form as well, and no layer inside that it would otherwise call.
    if issubclass(kind, (nn.MultiheadAttention, ScriptModule)):
        return False
    try:
        source = inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False
    return _SKIPS_LAYERS in source


def rewritten(kind: type[nn.Module], name: str, signature: str = "") -> Any:
    """Write a layer's forward anew: with types, and with a way into it.

    Args:
        kind: the layer's class; its forward has source.
        name: what to call the new function.
        signature: `(self, …) -> …` as TorchScript source, instead of its own.

    Raises:
        OSError: the forward has no source.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    [function] = tree.body
    assert isinstance(function, ast.FunctionDef)
    if signature:
        typed = ast.parse(f"def {name}{signature}: pass").body[0]
        assert isinstance(typed, ast.FunctionDef)
        function.args, function.returns = typed.args, typed.returns
    function.name = name
    if opens(kind):
        text = ast.unparse(function)
        tree = (_WithoutNesting() if _NESTS_ROWS in text else _WithoutSkipping()).visit(tree)
    source = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    return compile_function(source, name, kind, kind.forward.__globals__)


def compile_function(source: str, name: str, kind: type, namespace: dict[str, Any]) -> Any:
    """Define a function from source that TorchScript can read again.

    Args:
        source: holds one function.
        name: of the function.
        kind: the class it is for; appears in errors.
        namespace: the globals that it sees; not changed.
    """
    number = sum(file.startswith("<vitrine") for file in linecache.cache)
    file = f"<vitrine {number}: {name} of {kind.__name__}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    own = {**_TYPES, **namespace}
    exec(compile(source, file, "exec"), own)  # noqa: S102 (the source is made here)
    return own[name]


class _WithoutSkipping(ast.NodeTransformer):
    """`get_fastpath_enabled()` becomes false while somebody looks inside."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if _attribute(node) == _SKIPS_LAYERS:
            return _expression(f"CALL and not {OPEN}", node)
        return node


class _WithoutNesting(ast.NodeTransformer):
    """While somebody looks inside, padded rows stay padded, and are zero at the end as before."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if _attribute(node) == _NESTS_ROWS:
            return _expression(f"{ast.unparse(node.args[0])} if {OPEN} else CALL", node)
        if _attribute(node) == "to_padded_tensor":
            assert isinstance(node.func, ast.Attribute)
            value = ast.unparse(node.func.value)
            # At this point the mask is a tensor of 0 and -inf, or of bools.
            padded = "torch.jit._unwrap_optional(src_key_padding_mask)"
            padded += ".logical_not().logical_not().unsqueeze(-1)"
            return _expression(f"{value}.masked_fill({padded}, 0.0) if {OPEN} else CALL", node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        target = ast.unparse(node.targets[0])
        if target == "src_key_padding_mask_for_layers" and ast.unparse(node.value) == "None":
            node.value = _expression(f"src_key_padding_mask if {OPEN} else None", node.value)
        return node


def _attribute(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""


def _expression(text: str, call: ast.expr) -> ast.expr:
    """Parse an expression in which CALL stands for another."""

    class Put(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return copy.deepcopy(call) if node.id == "CALL" else node

    made: ast.expr = Put().visit(ast.parse(f"({text})", mode="eval").body)
    return made
