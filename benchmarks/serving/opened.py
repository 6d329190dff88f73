"""Open-loop load: requests at a fixed mean rate, whatever the server does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.serving.figures import Opened, percentiles
from benchmarks.serving.processor import Clock, Shares
from benchmarks.serving.running import Running

__all__ = ["load", "parse"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_CONNECTIONS: Final = 64
_GRACE_SECONDS: Final = 60.0


def load(server: Running, payload: Path, rate: float, seconds: float) -> Opened:
    """Ask a server `rate` times a second.

    Raises:
        RuntimeError: the sender failed.
    """
    command = [sys.executable, "-m", "benchmarks.serving.sender", str(payload), server.address]
    command += ["--rate", str(rate), "--seconds", str(seconds), "--connections", str(_CONNECTIONS)]
    clock = Clock(server)
    done = subprocess.run(
        command,
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * seconds + _GRACE_SECONDS,
    )
    used = clock.shares()
    if done.returncode:
        raise RuntimeError(f"the sender failed: {done.stderr.strip()}")
    return parse(done.stdout, rate, used)


def parse(text: str, rate: float, used: Shares) -> Opened:
    """Make figures of what the sender wrote.

    Args:
        text: its JSON.
        rate: requests per second that were scheduled.
        used: processor time that was taken; the sender's start is not counted as the client's.
    """
    found = json.loads(text)
    return Opened(
        rate=rate,
        per_second=found["right"] / found["seconds"],
        latency_ms=percentiles(found["latency_ms"]),
        lag_ms=percentiles(found["lag_ms"]),
        right=found["right"],
        wrong=found["wrong"],
        refused=found["refused"],
        broken=found["broken"],
        sample=found["sample"],
        server_cores=used.server / found["seconds"],
        client_cores=found["client_seconds"] / found["seconds"],
        other_cores=used.others / found["seconds"],
    )
