"""What is told when models are ready: where the server is, and a line to try each with."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from server.archives import Archive
from server.curl import curl_line
from server.start import Run
from server.state import State

__all__ = ["announce"]


def announce(
    run: Run, archives: Sequence[Archive], *, state: Path | None, curl: Sequence[str]
) -> None:
    """Print it, and write it for programs.

    Args:
        run: The run.
        archives: Those that answer, each model's default version first.
        state: The file to write, if any.
        curl: Options of the lines to try.
    """
    addresses = run.addresses
    print(
        f"Ready: inference {addresses.inference_url}, management {addresses.management_url}, "
        f"metrics {addresses.metrics_url}/metrics"
    )
    counts = Counter(archive.name for archive in archives)
    defaults = {archive.name: archive for archive in reversed(archives)}
    for archive in archives:
        is_default = archive is defaults[archive.name]
        note = " (default)" if is_default and counts[archive.name] > 1 else ""
        print(f"\n{archive.name} {archive.version}{note}")
        version = None if is_default else archive.version
        base = addresses.inference_url
        line = curl_line(base, archive.name, archive.sample, version, options=curl)
        print(line, flush=True)
    if state is not None:
        State(
            pid=os.getpid(),
            inference=addresses.inference_url,
            management=addresses.management_url,
            metrics=addresses.metrics_url,
            models=sorted(counts),
            condition=str(run.condition),
            store=str(run.store),
        ).write(state)
