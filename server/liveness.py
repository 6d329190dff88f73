"""Whether a process of this machine runs: TorchServe does not say at once when one was killed."""

import os
import sys
from pathlib import Path

__all__ = ["alive"]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    if sys.platform == "linux":
        try:
            # pid (name) state ...; the name may hold anything.
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return False
        return stat.rpartition(b")")[2].split()[:1] not in ([b"Z"], [b"X"])
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
