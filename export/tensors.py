"""Comparing tensors: the tolerance of each dtype, and how far two answers are apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from export.errors import ExportError
from formats.structure import answered

__all__ = ["TOLERANCE", "Difference", "Noise", "compare", "dtype_name", "leaves"]

TOLERANCE: Final[dict[str, tuple[float, float]]] = {
    "float64": (1e-9, 1e-9),
    "float32": (1e-5, 1e-5),
    "float16": (1e-2, 1e-3),
    "bfloat16": (2e-2, 1e-2),
}
"""Dtype to (relative, absolute) tolerance; integers and booleans must be equal.

Where rounding has been measured, ten times of what it does to a value is allowed on top. Elsewhere
the absolute one is in units of the largest finite value of the tensor, if that is above 1: an
output of size 1000 in float32 cannot agree to 1e-5 when the order of a sum changes.
"""
_TIMES: Final = 10

Noise = Callable[[], Sequence[Tensor]]
"""Measures how far rounding moves each value, when that is needed."""


@dataclass(frozen=True)
class Difference:
    """How far two answers are apart.

    Attributes:
        equal: within tolerance everywhere; NaN equals NaN.
        largest: largest absolute difference over the finite values.
        detail: which output fell and how; empty when equal.
    """

    equal: bool
    largest: float
    detail: str = ""


def dtype_name(dtype: torch.dtype) -> str:
    """Return "float32" for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def leaves(value: Any) -> list[tuple[str, Tensor]]:
    """Flatten what a model returned; numbers become 0-dimensional tensors, None is left out.

    Raises:
        ExportError: a leaf is neither a tensor nor a number; the message names it.
    """
    flat = []
    for path, leaf in answered(value):
        tensor = torch.tensor(leaf) if isinstance(leaf, (bool, int, float)) else leaf
        if not isinstance(tensor, Tensor):
            raise ExportError(
                f"output {path or 'of forward'} is a {type(leaf).__name__}; "
                "only tensors and numbers, in tuples, lists and dicts, can be served",
                hint="return tensors only; wrap the module in one whose forward picks those out of "
                "what it returns",
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ExportError(
                f"output {path or 'of forward'} is sparse or quantized",
                hint="make it dense in forward, with to_dense() or dequantize()",
            )
        flat.append((path, tensor.detach()))
    return flat


def compare(
    expected: Sequence[Tensor],
    actual: Sequence[Tensor],
    names: Sequence[str],
    noise: Noise | None = None,
) -> Difference:
    """Compare two answers, output by output, each by the tolerance of its dtype.

    Args:
        expected: the one.
        actual: the other.
        names: of the outputs, for the detail.
        noise: what rounding does to the expected answer; called only if it would decide.
    """
    if noise is None:
        return _compare(expected, actual, names, [None] * len(expected))
    exact = [torch.zeros(()) for _ in expected]
    found = _compare(expected, actual, names, exact)
    if found.equal or found.largest == float("inf"):
        return found
    measured = noise()
    if [part.shape for part in measured] != [part.shape for part in expected]:
        return found
    return _compare(expected, actual, names, measured)


def _compare(
    expected: Sequence[Tensor],
    actual: Sequence[Tensor],
    names: Sequence[str],
    noise: Sequence[Tensor | None],
) -> Difference:
    if len(expected) != len(actual):
        return Difference(False, float("inf"), f"{len(expected)} outputs became {len(actual)}")
    largest = 0.0
    for name, left, right, own in zip(names, expected, actual, noise, strict=True):
        if left.dtype != right.dtype or left.shape != right.shape:
            return Difference(
                False,
                float("inf"),
                f"output {name!r}: {dtype_name(left.dtype)}{list(left.shape)} became "
                f"{dtype_name(right.dtype)}{list(right.shape)}",
            )
        distance, close = _distance(left, right, own)
        largest = max(largest, distance)
        if not close:
            return Difference(False, largest, f"output {name!r} moved by {distance:.3g}")
    return Difference(True, largest)


def _distance(left: Tensor, right: Tensor, noise: Tensor | None) -> tuple[float, bool]:
    if left.numel() == 0:
        return 0.0, True
    if left.is_complex():
        parts = None if noise is None else noise.unsqueeze(-1)
        return _distance(torch.view_as_real(left), torch.view_as_real(right), parts)
    if not left.is_floating_point():
        apart = (left.to(torch.float64) - right.to(torch.float64)).abs().max().item()
        return float(apart), torch.equal(left, right)
    relative, absolute = TOLERANCE[dtype_name(left.dtype)]
    a, b = left.to(torch.float64), right.to(torch.float64)
    finite = a.isfinite() & b.isfinite()
    # Where one is not finite, both must be the same kind of not finite.
    same = bool(torch.where(finite, True, (a == b) | (a.isnan() & b.isnan())).all())
    gap = (a - b).abs().masked_fill(~finite, 0.0)
    size = a.abs().masked_fill(~finite, 0.0)
    if noise is None:
        allowed = absolute * max(1.0, size.max().item()) + relative * size
    else:
        allowed = absolute + relative * size + _TIMES * noise
    close = bool((gap <= allowed).all())
    distance = gap.max().item() if same else float("inf")
    return distance, same and close
