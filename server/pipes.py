"""Pipes that have to take more than usual, because their reader may have to wait for a core."""

import fcntl
from contextlib import suppress

__all__ = ["widen"]

# As much as Linux lets anybody have.
_BYTES = 1 << 20


def widen(pipe: int) -> None:
    """Let a pipe hold as much as it may; on Linux only."""
    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _BYTES)
