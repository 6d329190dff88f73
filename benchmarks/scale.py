"""Two replicas behind the balancer beside one, a core each: `scripts/benchmark scale`.

Needs Docker, wrk, and the images (`docker compose -f compose.yaml -f deploy/compose/scale.yaml
build`).
"""

import argparse
import os
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FILES: Final = ("compose.yaml", "deploy/compose/scale.yaml")
MODEL: Final = "digits"
#: Leaves out the models that are not asked.
ONLY: Final = f"services: {{vitrine: {{command: [--models, {MODEL}]}}}}\n"
LUA: Final = """\
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "application/octet-stream"
"""
_LIMITS: Final = {"VITRINE_PUBLISH": "127.0.0.1:", "VITRINE_CPUS": "1", "VITRINE_MEMORY": "2g"}


@contextmanager
def served(replicas: int, folder: Path) -> Iterator[str]:
    """Serve with so many replicas.

    Yields:
        The address of the balancer.
    """
    (folder / "only.yaml").write_text(ONLY, encoding="utf-8")
    files = [part for file in (*FILES, folder / "only.yaml") for part in ("--file", str(file))]
    compose = ["docker", "compose", "--project-name", f"vitrine-scale-{replicas}", *files]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*compose, *arguments],
            cwd=ROOT,
            env={**os.environ, **_LIMITS},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout.strip()

    try:
        run("up", "--detach", "--wait", "--no-build", "--scale", f"vitrine={replicas}")
        yield run("port", "balancer", "8080")
    finally:
        run("down", "--volumes", "--timeout", "5")


def rate(address: str, script: Path, connections: int, seconds: int) -> float:
    """Requests a second.

    Raises:
        RuntimeError: wrk failed, or an answer was an error.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    command.append(f"http://{address}/predictions/{MODEL}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if found is None or "Non-2xx" in done.stdout:
        raise RuntimeError(f"wrk said: {done.stdout}{done.stderr}")
    return float(found[1])


def main(arguments: Sequence[str]) -> int:
    """Measure, alternating, and print a table."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark scale", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=int, default=6, metavar="S", help="of each measurement")
    parser.add_argument("--connections", type=int, default=8, metavar="N")
    parser.add_argument("--rows", type=int, default=64, metavar="N", help="pictures of a request")
    given = parser.parse_args(arguments)
    for program in ("docker", "wrk"):
        if shutil.which(program) is None:
            print(f"error: {program} is not installed", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        folder = Path(scratch)
        pixels = random.Random(0).choices(range(17), k=given.rows * 64)  # noqa: S311
        (folder / "body").write_bytes(struct.pack(f"<{len(pixels)}f", *pixels))
        script = folder / "load.lua"
        script.write_text(LUA.format(body=folder / "body"), encoding="utf-8")
        addresses = {n: running.enter_context(served(n, folder)) for n in (1, 2)}
        found: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(given.rounds + 1):
            for replicas, address in addresses.items():
                per_second = rate(address, script, given.connections, given.seconds)
                # The first turn warms up.
                if turn:
                    found[replicas].append(per_second)
    print(
        f"| replicas | requests/s of {given.rows} rows: median | least | most |\n|---|---|---|---|"
    )
    for replicas, rates in found.items():
        row = f"{statistics.median(rates):.0f} | {min(rates):.0f} | {max(rates):.0f}"
        print(f"| {replicas} | {row} |")
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    print(f"\nRatio, median of {given.rounds} rounds: {statistics.median(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
