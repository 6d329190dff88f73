"""Closed-loop load: wrk with a script that gives each request its own input and checks answers."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.serving.figures import Closed, percentiles
from benchmarks.serving.processor import Clock, Shares
from benchmarks.serving.running import Running

__all__ = ["load", "parse", "run"]

_SCRIPT: Final = Path(__file__).with_name("closed.lua")
_TIMEOUT_SECONDS: Final = 30
_GRACE_SECONDS: Final = 60.0


def load(server: Running, payload: Path, result: Path, connections: int, seconds: float) -> Closed:
    """Ask a server as fast as it answers.

    Args:
        server: whom.
        payload: folder of `payload.write`.
        result: file to work in.
        connections: each has a thread of its own in wrk.
        seconds: how long.

    Raises:
        RuntimeError: wrk is not installed, or failed.
    """
    clock = Clock(server)
    run(server.address, payload, result, connections, seconds)
    return parse(result.read_text(encoding="utf-8"), clock.shares())


def run(address: str, payload: Path, result: Path, connections: int, seconds: float) -> None:
    """Run wrk and let its script write the result, as JSON.

    Args:
        address: `host:port`.
        payload: folder of `payload.write`.
        result: the file to write.
        connections: each has a thread of its own.
        seconds: how long; wrk takes whole seconds.

    Raises:
        RuntimeError: wrk is not installed, or failed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise RuntimeError("wrk is not installed (Debian and Ubuntu have it as a package)")
    result.unlink(missing_ok=True)
    command = [wrk, f"-d{max(1, round(seconds))}s", f"-t{connections}", f"-c{connections}"]
    command += [f"--timeout={_TIMEOUT_SECONDS}s", f"-s{_SCRIPT}", f"http://{address}"]
    done = subprocess.run(
        command,
        env={**os.environ, "BENCH_PAYLOAD": str(payload), "BENCH_RESULT": str(result)},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + _GRACE_SECONDS,
    )
    if done.returncode or not result.exists():
        raise RuntimeError(f"wrk failed: {done.stdout.strip()} {done.stderr.strip()}")


def parse(text: str, used: Shares) -> Closed:
    """Make figures of what `closed.lua` wrote.

    Args:
        text: its JSON.
        used: processor time that was taken.
    """
    found = json.loads(text)
    seconds = found["seconds"]
    return Closed(
        per_second=found["right"] / seconds,
        latency_ms=percentiles(found["milliseconds"]),
        right=found["right"],
        wrong=found["wrong"],
        refused=found["refused"],
        broken=found["broken"],
        sample=bytes.fromhex(found["sample"]).decode("utf-8", "replace"),
        server_cores=used.server / seconds,
        client_cores=used.client / seconds,
        other_cores=used.others / seconds,
    )
