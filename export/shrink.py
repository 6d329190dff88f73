"""A smaller input that fails as a large one does, for a person to look at."""

import time
from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from export.inputs import Example
from export.tensors import dtype_name

__all__ = ["show", "shrink"]

_SECONDS: Final = 10.0
_VALUES: Final = 24


def shrink(case: Example, fails: Callable[[Example], bool]) -> Example:
    """Take rows away, then set values to zero and to round numbers, while it still fails.

    The method is that of delta debugging (Zeller and Hildebrandt, 2002), with a bound of time.

    Args:
        case: an input for which `fails` is true.
        fails: tells whether an input shows the difference.

    Returns:
        An input that fails; `case` itself where nothing smaller does.
    """
    deadline = time.monotonic() + _SECONDS

    def still(candidate: Example) -> bool:
        return time.monotonic() < deadline and fails(candidate)

    small = _fewer_rows(case, still)
    for position in range(len(small)):
        small = _zeroed(small, position, still)
        small = _rounded(small, position, still)
    return small


def show(case: Example, names: tuple[str, ...]) -> str:
    """Write an input for a message, with its values where they are few."""
    parts = []
    for name, tensor in zip(names, case, strict=True):
        kind = f"{name} {dtype_name(tensor.dtype)}{list(tensor.shape)}"
        if tensor.numel() <= _VALUES:
            shown = tensor.tolist()
            parts.append(f"{kind} = {_short(shown)}")
            continue
        places = tensor.reshape(-1).nonzero().reshape(-1)
        if len(places) <= _VALUES:
            values = {int(place): tensor.reshape(-1)[place].item() for place in places}
            listed = ", ".join(f"[{place}] {_short(value)}" for place, value in values.items())
            parts.append(f"{kind} of zeros but for {listed or 'none'} (positions row by row)")
        else:
            mean = tensor.double().mean().item()
            parts.append(f"{kind} with mean {mean:.4g}")
    return "; ".join(parts)


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _fewer_rows(case: Example, still: Callable[[Example], bool]) -> Example:
    if any(tensor.ndim == 0 or len(tensor) != len(case[0]) for tensor in case):
        return case
    for rows in range(1, len(case[0])):
        for start in range(len(case[0]) - rows + 1):
            fewer = tuple(tensor[start : start + rows] for tensor in case)
            if still(fewer):
                return fewer
        if rows == 2:  # more than two rows that need each other are rare, and many to try
            break
    return case


def _zeroed(case: Example, position: int, still: Callable[[Example], bool]) -> Example:
    size = case[position].numel()
    step = size
    while step >= 1:
        for start in range(0, size, step):
            flat = case[position].reshape(-1)
            if not bool((flat[start : start + step] != 0).any()):
                continue
            changed = flat.clone()
            changed[start : start + step] = 0
            candidate = _with(case, position, changed.reshape(case[position].shape))
            if still(candidate):
                case = candidate
        step //= 2
    return case


def _rounded(case: Example, position: int, still: Callable[[Example], bool]) -> Example:
    if not case[position].is_floating_point():
        return case
    for candidate in _rounder(case[position]):
        changed = _with(case, position, candidate)
        if still(changed):
            return changed
    return case


def _rounder(tensor: Tensor) -> Iterator[Tensor]:
    yield tensor.sign()
    for digits in (0, 1, 2):
        yield torch.round(tensor, decimals=digits)


def _with(case: Example, position: int, tensor: Tensor) -> Example:
    return (*case[:position], tensor, *case[position + 1 :])
