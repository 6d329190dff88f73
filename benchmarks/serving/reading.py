"""Reads the numbers of an answer, as `closed.lua` does."""

import re
from typing import Final

import numpy as np

from benchmarks.serving.work import TOLERANCE, Floats

__all__ = ["matches"]

_NUMBER: Final = re.compile(rb"[-+\d.eE]+")


def matches(
    body: bytes, expected: Floats, marker: str | None, tolerance: float = TOLERANCE
) -> bool:
    """Whether an answer holds the expected numbers.

    Args:
        body: of the answer.
        expected: float32 [outputs].
        marker: as in `Form`.
        tolerance: as in `Form`.
    """
    got = _last(body, len(expected)) if marker is None else _after(body, marker, len(expected))
    if got is None:
        return False
    off = np.abs(got - expected) / np.maximum(1, np.abs(expected))
    # Written so that a NaN fails.
    return bool((off <= tolerance).all())


def _last(body: bytes, count: int) -> Floats | None:
    width = 4 * count
    return np.frombuffer(body[-width:], "<f4") if len(body) >= width else None


def _after(body: bytes, marker: str, count: int) -> Floats | None:
    start = body.find(marker.encode())
    if start < 0:
        return None
    found = _NUMBER.finditer(body, start + len(marker))
    try:
        numbers = [float(match.group()) for match, _ in zip(found, range(count), strict=False)]
    except ValueError:
        return None
    return np.array(numbers, np.float32) if len(numbers) == count else None
