"""What a benchmark says while it runs."""

import sys

__all__ = ["progress"]


def progress(line: str) -> None:
    """Show a line on stderr: kept up to date on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)
