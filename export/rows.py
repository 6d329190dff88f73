"""Row independence, measured: may the rows of different requests share a batch?"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from export.eager import answer
from export.inputs import Example
from export.tensors import compare
from formats.certificate import Batching
from formats.signature import Signature

__all__ = ["measure"]

MAX_ROWS: Final = 64
_LEAST: Final = 16  # the most requests that TorchServe is told to put into a batch
_POOL: Final = 24
_BESIDE_HOSTILE: Final = 8
_FEW: Final = 9
_SECONDS: Final = 30.0
_HOSTILE: Final = (0.0, 1e30, -1e30, float("nan"), float("inf"))


def measure(module: Any, signature: Signature, cases: Sequence[Example]) -> Batching:
    """Compare each row's answer alone with its answer in company.

    Company is other rows in several numbers and orders, and hostile ones: zeros, huge values,
    NaN and infinities.

    Args:
        module: the frozen graph that will serve.
        signature: says whether there is a row axis at all.
        cases: inputs to take rows from.
    """
    if not signature.row_axis:
        return Batching(False, 1, "axis 0 does not count rows in every input and output")
    pool = _pool(cases)
    alone = [(row, own) for row in pool if (own := _alone(module, row)) is not None]
    names = [spec.name for spec in signature.outputs]
    rows = [row for row, _ in alone]
    started = time.monotonic()
    largest = 1
    for company, label in _companies(module, rows):
        moved = _moved(module, company, alone, names)
        if moved:
            return Batching(False, 1, f"{label}, {moved}")
        largest = max(largest, len(company))
        if time.monotonic() - started > _SECONDS and largest >= _LEAST:
            break
    hostile = any(tensor.is_floating_point() for tensor in cases[0])
    return Batching(
        True,
        largest,
        f"{len(alone)} rows answered the same alone and among 2, 3, ... {largest} rows"
        + (", and beside rows of zeros, huge values, NaN and infinities" if hostile else ""),
    )


def _alone(module: Any, row: Example) -> list[Tensor] | None:
    try:
        return [tensor for _, tensor in answer(module, row)]
    except Exception:
        return None  # a made row that the model refuses says nothing about company


def _pool(cases: Sequence[Example]) -> list[Example]:
    """Return single rows of one shape, taken evenly from all cases."""
    shape = tuple(tensor.shape[1:] for tensor in cases[0])
    rows = [
        tuple(tensor[row : row + 1] for tensor in case)
        for case in cases
        if tuple(tensor.shape[1:] for tensor in case) == shape
        for row in range(len(case[0]))
    ]
    step = max(1, len(rows) // _POOL)
    return rows[::step][:_POOL]


Company = list[tuple[int | None, Example]]


def _companies(module: Any, rows: Sequence[Example]) -> Iterator[tuple[Company, str]]:
    """Yield batches: a few other rows, hostile rows, then every number of rows up to the largest.

    A model may care about one number of rows only. Each row comes with its position in `rows`,
    a hostile one with None.
    """
    generator = torch.Generator().manual_seed(0)

    def crowds(sizes: range) -> Iterator[tuple[Company, str]]:
        for size in sizes:
            order = torch.randperm(len(rows), generator=generator).tolist()
            members = [order[position % len(rows)] for position in range(size)]
            yield [(member, rows[member]) for member in members], f"among {size} rows"

    yield from crowds(range(2, _FEW))
    yield from _beside_hostile(module, rows)
    yield from crowds(range(_FEW, MAX_ROWS + 1))


def _beside_hostile(module: Any, rows: Sequence[Example]) -> Iterator[tuple[Company, str]]:
    floats = any(tensor.is_floating_point() for tensor in rows[0])
    for value in _HOSTILE if floats else ():
        hostile = tuple(_filled(tensor, value) for tensor in rows[0])
        if _alone(module, hostile) is None:
            continue  # a request like that is answered with an error, and its neighbours run again
        for member, row in enumerate(rows[:_BESIDE_HOSTILE]):
            yield [(member, row), (None, hostile)], f"beside a row of {value:g}"
            yield [(None, hostile), (member, row), (None, hostile)], f"between rows of {value:g}"


def _filled(tensor: Tensor, value: float) -> Tensor:
    # Integers may be indices, where a made-up value is not hostile but invalid.
    if not tensor.is_floating_point():
        return tensor
    limit = float(torch.finfo(tensor.dtype).max)
    finite = min(max(value, -limit), limit) if math.isfinite(value) else value
    return torch.full_like(tensor, finite)


def _moved(
    module: Callable[..., Any],
    company: Company,
    alone: Sequence[tuple[Example, list[Tensor]]],
    names: Sequence[str],
) -> str:
    batch = tuple(torch.cat(columns) for columns in zip(*(row for _, row in company), strict=True))
    try:
        together = [tensor for _, tensor in answer(module, batch)]
    except Exception as error:
        return f"the model raised {type(error).__name__}"
    for position, (member, _) in enumerate(company):
        if member is None:
            continue
        own = [tensor[position : position + 1] for tensor in together]
        difference = compare(alone[member][1], own, names)
        if not difference.equal:
            return f"a row's answer changed: {difference.detail}"
    return ""
