"""Nested outputs, flattened: how a tuple or dict of tensors becomes named outputs."""

from collections.abc import Iterator
from typing import Any


def flatten(value: Any) -> list[tuple[str, Any]]:
    """Return the leaves of nested tuples, lists and dicts, each with its path.

    Args:
        value: what a model returned: a leaf, or tuples, lists and dicts of leaves, nested.

    Returns:
        `(path, leaf)` in a fixed order: positions for sequences, insertion order for dicts.
        A path joins positions and keys with "_"; a lone leaf has the path "".
    """
    return list(_walk(value, ""))


def answered(value: Any) -> list[tuple[str, Any]]:
    """Return `flatten` without the leaves that are None: what a model did not return is no output.

    An attention that was asked for no weights returns `(y, None)`, which has one output.
    """
    return [(path, leaf) for path, leaf in flatten(value) if leaf is not None]


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", range(len(value)))
        children = [(str(name), child) for name, child in zip(names, value, strict=True)]
    else:
        yield path, value
        return
    for name, child in children:
        yield from _walk(child, f"{path}_{name}" if path else name)
