"""Changes to a gradient on its way back. None of them waits for the device."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Change", "clip_norm", "drop_non_finite", "scale"]

Change = Callable[[Tensor], Tensor | None]
"""Takes the gradient with respect to a layer's output, and returns what goes on in its place: the
same shape and dtype. None leaves it as it is. It must not write into its argument."""

_HALF = (torch.float16, torch.bfloat16)


def clip_norm(limit: float) -> Change:
    """Return a change that makes the 2-norm of the whole gradient at most `limit`.

    A shorter gradient keeps its bits. One that is not finite stays so: drop that first.

    Raises:
        ValueError: `limit` is negative or NaN.
    """
    if not limit >= 0:
        raise ValueError(f"limit must be at least 0, not {limit}")

    def clip(gradient: Tensor) -> Tensor:
        wide = torch.float32 if gradient.dtype in _HALF else None
        norm = torch.linalg.vector_norm(gradient, dtype=wide)
        # 0-dimensional: it does not change the dtype of what it multiplies.
        shorter: Tensor = gradient * (limit / norm).clamp(max=1.0)
        return shorter

    return clip


def scale(factor: float) -> Change:
    """Return a change that multiplies the gradient by `factor`; below 0 reverses it."""

    def multiply(gradient: Tensor) -> Tensor:
        return gradient * factor

    return multiply


def drop_non_finite() -> Change:
    """Return a change that puts 0 in the place of NaN and infinities."""

    def drop(gradient: Tensor) -> Tensor:
        return torch.where(torch.isfinite(gradient), gradient, torch.zeros_like(gradient))

    return drop


def in_turn(changes: Change | Sequence[Change]) -> tuple[Change, ...]:
    """Return one change or several as several."""
    return (changes,) if callable(changes) else tuple(changes)
