"""Row independence, measured: may the rows of different requests share a batch?"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from export.eager import answer
from export.inputs import Example
from export.rounding import Rounding
from export.tensors import compare
from formats.certificate import Batching
from formats.signature import Signature

__all__ = ["measure"]

MAX_ROWS: Final = 64
_LEAST: Final = 16  # the most requests that TorchServe is told to put into a batch
_POOL: Final = 24
_BESIDE_HOSTILE: Final = 8
_FEW: Final = 9
_SOME: Final = (16, 17, 32, 33, 48, 63, 64)
_COPIED: Final = 3
_SECONDS: Final = 30.0
_HOSTILE: Final = (0.0, 1e30, -1e30, math.nan, math.inf, -math.inf)


@dataclass(frozen=True)
class _Company:
    """A batch that is tried.

    Attributes:
        rows: in order, each with whether its answer is looked at: of hostile ones it is not.
        label: what it is, for the reason.
    """

    rows: list[tuple[Example, bool]]
    label: str


def measure(
    module: Any,
    signature: Signature,
    cases: Sequence[Example],
    rounding: Rounding,
    *,
    thorough: bool = True,
) -> Batching:
    """Compare each row's answer alone with its answer in company.

    Company is other rows in several numbers and orders, hostile ones (zeros, huge values, NaN and
    infinities), many copies of itself, and the rows of its own case: a case that was added because
    it takes a branch brings the rows that take it.

    Args:
        module: the frozen graph that will serve.
        signature: says whether there is a row axis at all.
        cases: inputs to take rows from.
        rounding: how far answers move for no reason.
        thorough: try every number of rows rather than some.
    """
    if not signature.row_axis:
        return Batching(False, 1, "axis 0 does not count rows in every input and output")
    alone = _Alone(module, rounding)
    # Cut once: a row is known by its tensors, and is answered alone once.
    cut = [_rows_of(case) for case in cases]
    rows = [row for row in _pool(cut) if alone(row) is not None]
    if not rows:
        return Batching(False, 1, "the graph answers none of the rows by itself")
    names = [spec.name for spec in signature.outputs]
    started = time.monotonic()
    largest = 1
    for company in _companies(alone, rows, cut, thorough):
        moved = _moved(module, company, alone, names)
        if moved:
            return Batching(False, 1, f"{company.label}, {moved}")
        largest = max(largest, len(company.rows))
        if time.monotonic() - started > _SECONDS and largest >= _LEAST:
            break
    hostile = any(tensor.is_floating_point() for tensor in cases[0])
    numbers = f"2, 3, ... {largest}" if thorough else f"up to {largest}"
    return Batching(
        True,
        largest,
        f"{len(rows)} rows answered the same alone and among {numbers} rows"
        + (", and beside rows of zeros, huge values, NaN and infinities" if hostile else ""),
    )


class _Alone:
    """The answers of single rows, each computed once; None where the graph refuses the row."""

    def __init__(self, module: Any, rounding: Rounding) -> None:
        self._module = module
        self._rounding = rounding
        self._noise: dict[tuple[int, ...], list[Tensor]] = {}
        self._known: dict[tuple[int, ...], tuple[Example, list[Tensor] | None]] = {}

    def __call__(self, row: Example) -> list[Tensor] | None:
        key = tuple(map(id, row))
        if key not in self._known:
            try:
                found = [tensor for _, tensor in answer(self._module, row)]
            except Exception:
                found = None  # a made row that the model refuses says nothing about company
            # The row is kept with its answer, so that its id stays its own.
            self._known[key] = row, found
        return self._known[key][1]

    def noise(self, row: Example) -> list[Tensor]:
        """Return how far a row's answer moves for no reason; measured once."""
        key = tuple(map(id, row))
        if key not in self._noise:
            self._noise[key] = self._rounding(row)
        return self._noise[key]


def _rows_of(case: Example) -> list[Example]:
    return [tuple(tensor[row : row + 1] for tensor in case) for row in range(len(case[0]))]


def _pool(cut: Sequence[list[Example]]) -> list[Example]:
    """Return single rows of one shape, taken evenly from all cases."""
    shape = _shape(cut[0][0])
    rows = [row for own in cut if own and _shape(own[0]) == shape for row in own]
    step = max(1, len(rows) // _POOL)
    return rows[::step][:_POOL]


def _shape(case: Example) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape[1:] for tensor in case)


def _companies(
    alone: _Alone, rows: Sequence[Example], cut: Sequence[list[Example]], thorough: bool
) -> Iterator[_Company]:
    """Yield batches: a few other rows, hostile rows, whole cases, copies, and large crowds.

    A model may care about one number of rows only.
    """
    generator = torch.Generator().manual_seed(0)

    def crowds(sizes: Iterable[int]) -> Iterator[_Company]:
        for size in sizes:
            order = torch.randperm(len(rows), generator=generator).tolist()
            members = [rows[order[position % len(rows)]] for position in range(size)]
            yield _Company([(row, True) for row in members], f"among {size} rows")

    yield from crowds(range(2, _FEW))
    yield from _beside_hostile(alone, rows)
    yield from crowds([_LEAST])
    yield from _whole_cases(alone, rows, cut)
    for row in rows[:: -(-len(rows) // _COPIED)]:
        yield _Company([(row, True)] * MAX_ROWS, f"among {MAX_ROWS} copies of itself")
    yield from crowds(range(_FEW, MAX_ROWS + 1) if thorough else _SOME)


def _whole_cases(
    alone: _Alone, rows: Sequence[Example], cut: Sequence[list[Example]]
) -> Iterator[_Company]:
    # Last come those that were searched for, because they take a branch as none did before.
    for case in reversed(cut):
        own = [row for row in case[:MAX_ROWS] if alone(row) is not None]
        others = [row for row in rows[:2] if own and _shape(row) == _shape(own[0])]
        if own and len(own) + len(others) > 1:
            label = f"among the {len(own) + len(others)} rows of an input"
            yield _Company([(row, True) for row in (*own, *others)], label)


def _beside_hostile(alone: _Alone, rows: Sequence[Example]) -> Iterator[_Company]:
    if not any(tensor.is_floating_point() for tensor in rows[0]):
        return
    hostile = [
        (tuple(_filled(tensor, value, where) for tensor in rows[0]), f"{value:g}")
        for value in _HOSTILE
        for where in ((slice(None),) if math.isfinite(value) else (slice(None), 0, -1))
    ]
    for made, name in hostile:
        if alone(made) is None:
            continue  # a request like that is answered with an error, and its neighbours run again
        for row in rows[:_BESIDE_HOSTILE]:
            yield _Company([(row, True), (made, False)], f"beside a row of {name}")
            yield _Company([(made, False), (row, True), (made, False)], f"between rows of {name}")


def _filled(tensor: Tensor, value: float, where: int | slice) -> Tensor:
    # Integers may be indices, where a made-up value is not hostile but invalid.
    if not tensor.is_floating_point():
        return tensor
    limit = float(torch.finfo(tensor.dtype).max)
    filled = tensor.clone(memory_format=torch.contiguous_format)
    filled.view(-1)[where] = min(max(value, -limit), limit) if math.isfinite(value) else value
    return filled


def _moved(
    module: Any,
    company: _Company,
    alone: _Alone,
    names: Sequence[str],
) -> str:
    batch = tuple(
        torch.cat(columns) for columns in zip(*(row for row, _ in company.rows), strict=True)
    )
    try:
        together = [tensor for _, tensor in answer(module, batch)]
    except Exception as error:
        return f"the model raised {type(error).__name__}"
    for position, (row, looked_at) in enumerate(company.rows):
        expected = alone(row)
        if not looked_at or expected is None:
            continue
        own = [tensor[position : position + 1] for tensor in together]

        difference = compare(expected, own, names, partial(alone.noise, row))
        if not difference.equal:
            return f"a row's answer changed: {difference.detail}"
    return ""
