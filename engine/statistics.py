"""What a hook records of a tensor. TorchScript compiles it into the model's graph.

The cheapest calls that carry what is needed: on large tensors `var_mean`, `aminmax` and
`count_nonzero` run several times longer than the ones used there. All results stay on the device.
"""

from typing import List  # noqa: UP035 (TorchScript reads these)

import torch
from torch import Tensor

__all__ = ["inspect_rows", "is_finite", "summarise_rows"]


def by_rows(output: Tensor, axis: int) -> Tensor:
    """Return a floating-point matrix with one line per row; one line if there is no row axis.

    Args:
        output: any dtype; complex numbers are measured by magnitude.
        axis: the axis that counts rows, or -1.
    """
    values = output.detach()
    if values.is_complex():
        values = values.abs()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.to(torch.float32)
    elif not values.is_floating_point():
        values = values.to(torch.float64)
    if axis < 0 or axis >= values.dim():
        return values.reshape(1, values.numel())
    if axis > 0:
        values = values.movedim(axis, 0)
    if values.numel() == 0:
        return values.reshape(values.size(0), 0)
    return values.reshape(values.size(0), -1)


def summarise_rows(
    output: Tensor,
    axis: int,
    found: list[Tensor],
    facts: List[int],  # noqa: UP006
) -> None:
    """Append five vectors to `found`, one entry per row: what statistics are made from.

    They are: mean; population variance; minimum; maximum; 2-norm of the signs, whose square is the
    number of values that are not zero. To `facts` go the number of rows and
    the number of values in each.
    """
    values = by_rows(output, axis)
    count = values.size(1)
    facts.append(values.size(0))
    facts.append(count)
    if count == 0:
        for _ in range(5):
            found.append(torch.full([values.size(0)], float("nan"), device=values.device))
        return
    if values.numel() < 4096:
        # Few bytes: calls cost more than passes.
        variance, mean = torch.var_mean(values, [1], correction=0)
        least, greatest = torch.aminmax(values, dim=1)
    else:
        # Many bytes: the fewest passes. The mean square less the squared mean loses digits where
        # the mean is large; only there are the values centred first.
        mean = values.mean(1)
        power = torch.linalg.vector_norm(values, 2, 1)
        variance = power * power / float(count) - mean * mean
        if bool((mean * mean > 4.0 * variance).any()):
            spread = torch.linalg.vector_norm(values - mean.unsqueeze(1), 2, 1)
            variance = spread * spread / float(count)
        least = values.amin(1)
        greatest = values.amax(1)
    found.append(mean)
    found.append(variance)
    found.append(least)
    found.append(greatest)
    found.append(torch.linalg.vector_norm(values.sign(), 2, 1))


def inspect_rows(
    output: Tensor,
    axis: int,
    found: list[Tensor],
    facts: List[int],  # noqa: UP006
) -> None:
    """Append two vectors to `found`, one entry per row: how many values are zero; not finite."""
    values = by_rows(output, axis)
    facts.append(values.size(0))
    facts.append(values.size(1))
    found.append((values == 0).sum(1).to(torch.float64))
    found.append(torch.logical_not(torch.isfinite(values)).sum(1).to(torch.float64))


def is_finite(value: Tensor) -> bool:
    """Tell whether all values are finite."""
    if value.is_floating_point() or value.is_complex():
        return bool(torch.isfinite(value).all())
    return True
