"""Writes requirements/locked/; scripts/lock calls it.

One file for each of `CHAIN`, with what it adds to those that it builds on; torch apart, whose
build depends on the machine, and cuda, which torch's CUDA build needs beside it.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

REQUIREMENTS: Final = Path(__file__).resolve().parent.parent / "requirements"
LOCKED: Final = REQUIREMENTS / "locked"
#: Each with what it builds on.
CHAIN: Final = {
    "serve": (),
    "tracing": ("serve",),
    "export": ("serve",),
    "observe": (),
    "dev": ("serve", "tracing", "export", "observe"),
}
TITLES: Final = {
    "torch": "torch as PyPI has it: for Linux with a GPU, and for macOS.",
    "cuda": "What torch's CUDA build needs beside it.",
    "serve": "What the server needs.",
    "tracing": "What exporting traces needs, on top of serve.txt.",
    "export": "What exporting models needs, on top of serve.txt.",
    "observe": "What reading activation logs needs; it builds on none of the others.",
    "dev": "What tests and linters need, on top of tracing.txt, export.txt and observe.txt.",
}
_OF_CUDA: Final = re.compile(r"^(nvidia-|cuda-|triton$)")
_RECORD: Final = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?==.*(?:\n {4}.*)*", re.MULTILINE)


def records(text: str) -> dict[str, str]:
    """Read a requirements file: each package's lines, by its name."""
    return {found[1].lower(): found[0] for found in _RECORD.finditer(text)}


def resolve(name: str, known: str, upgrade: bool) -> dict[str, str]:
    """Let uv find all that `requirements/NAME.txt` brings along, on every machine.

    Args:
        name: one of `CHAIN`.
        known: what is pinned already.
        upgrade: whether that may change.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "locked.txt"
        out.write_text(known, encoding="utf-8")
        command = ["uv", "pip", "compile", "--universal", "--python-version", "3.11"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
        command += ["--output-file", str(out), str(REQUIREMENTS / f"{name}.txt")]
        subprocess.run(
            [str(Path(sys.executable).parent / command[0]), *command[1:]] + ["--upgrade"] * upgrade,
            check=True,
        )
        return records(out.read_text(encoding="utf-8"))


def write(name: str, found: Mapping[str, str], names: Iterable[str]) -> None:
    """Write a locked file."""
    title = f"# {TITLES[name]} Written by scripts/lock.\n"
    text = "".join(f"{found[one]}\n" for one in sorted(names))
    (LOCKED / f"{name}.txt").write_text(title + text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Write all of them."""
    LOCKED.mkdir(exist_ok=True)
    known = "".join(path.read_text(encoding="utf-8") for path in sorted(LOCKED.glob("[!t]*.txt")))
    found = resolve("dev", known, "--upgrade" in arguments)
    pins = "\n".join(found.values())
    cuda = {name for name in found if _OF_CUDA.match(name)}
    write("torch", found, ["torch"])
    write("cuda", found, cuda)
    needed: dict[str, set[str]] = {}
    for name, below in CHAIN.items():
        own = found if name == "dev" else resolve(name, pins, upgrade=False)
        needed[name] = set(own)
        write(
            name, found, needed[name].difference(cuda, {"torch"}, *(needed[one] for one in below))
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
