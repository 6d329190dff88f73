"""Times of a log: text in its lines, milliseconds since 1970 in the index."""

from typing import Any, Final

import numpy as np

__all__ = ["END", "in_milliseconds"]

END: Final = 7_258_118_400_000
"""The year 2200, in milliseconds: what says that it is of later, or of before 1970, is damaged."""


def in_milliseconds(times: list[str]) -> Any:
    """Return times as milliseconds since 1970, int64 [n].

    Args:
        times: each as `2026-01-31T12:00:00.000Z`.

    Raises:
        ValueError: one of them is no time of a log.
    """
    if any(len(time) != 24 or time[23] != "Z" for time in times):
        raise ValueError("a time is not as long as a log's")
    found = np.array([time[:-1] for time in times], dtype="datetime64[ms]").astype(np.int64)
    # "Not a time" is the least number there is.
    if len(found) and not (found.min() >= 0 and found.max() < END):
        raise ValueError("a time is out of range")
    return found
