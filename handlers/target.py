"""Which value of an output an explanation explains, for each row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from formats.signature import TensorSpec
from handlers.errors import RequestError
from handlers.values import Array, describe

__all__ = ["Targets", "choose_targets"]

Targets = list[tuple[int, ...]]
"""For each row, the index of a value in the row's output: () where that is one number."""


def choose_targets(target: Any, output: Array, spec: TensorSpec) -> Targets:
    """Find the value that is meant in each row.

    Args:
        target: as JSON: None (the greatest of each row), an index, a label, a list of indices
            where a row's output has several axes, or a list of these, one for each row.
        output: shape [rows, ...].
        spec: of the output.

    Raises:
        RequestError: there is no such value.
    """
    rows, shape = len(output), output.shape[1:]
    if output.size == 0:
        raise _refused(f"output {spec.name!r} is empty", "an output with values")
    if target is None:
        flat = output.reshape(rows, -1).argmax(axis=1)
        return [tuple(map(int, np.unravel_index(place, shape))) for place in flat]
    if _is_one(target, shape):
        return [_index(target, shape, spec)] * rows
    if not isinstance(target, list) or len(target) != rows:
        raise _refused(f"target is {_shown(target)} for {rows} row(s)", _expected(shape, rows))
    return [_index(one, shape, spec) for one in target]


def _is_one(target: Any, shape: Sequence[int]) -> bool:
    """Tell whether a target is that of one row; a list is one where a row has several axes."""
    if not isinstance(target, list):
        return True
    return len(shape) > 1 and len(target) == len(shape) and not isinstance(target[0], list)


def _index(target: Any, shape: Sequence[int], spec: TensorSpec) -> tuple[int, ...]:
    if isinstance(target, str):
        # A class may be called "7", and 7 is then written without quotes all the same.
        if target in spec.labels and len(shape) == 1:
            return (spec.labels.index(target),)
        raise _refused(
            f"output {spec.name!r} has no label {target[:80]!a}",
            ", ".join(spec.labels) or "an index",
        )
    index = target if isinstance(target, list) else [target]
    if not shape and index == [0]:
        return ()
    if len(index) != len(shape) or any(
        not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < size
        for place, size in zip(index, shape, strict=False)
    ):
        raise _refused(f"target {_shown(target)} is not in the output", _expected(shape, 1))
    return tuple(index)


def _shown(target: Any) -> str:
    return repr(target)[:80] if isinstance(target, (int, list)) else describe(target)


def _expected(shape: Sequence[int], rows: int) -> str:
    ranges = [f"0 to {size - 1}" for size in shape]
    one = ranges[0] if len(ranges) == 1 else f"[{', '.join(ranges)}]" if ranges else "0"
    return one if rows == 1 else f"{one}; or a list of {rows} of these, one for each row"


def _refused(message: str, expected: str) -> RequestError:
    return RequestError("bad_target", ascii(message)[1:-1][:300], expected=expected[:1000])
