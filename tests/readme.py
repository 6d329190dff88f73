"""README.md and the pages of docs/, read as code: their fenced blocks with their roles."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

ROLES = {"server", "test", "request", "ask", "page", "look", "container", "", "factory"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the word after it, and its text."""

    language: str
    role: str
    text: str


def blocks() -> list[Block]:
    """Return the fenced blocks of README.md in order."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^```(\w+) ?([\w.]*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(*parts) for parts in found]


def shell(role: str) -> list[str]:
    """Return the shell blocks of one role."""
    return [block.text for block in blocks() if block.language == "sh" and block.role == role]


def run_page(name: str, url: str, folder: Path, seconds: float = 60) -> Iterator[tuple[str, str]]:
    """Run the shell blocks with a role of a page in docs/, in order.

    Args:
        name: of the page.
        url: of the server to ask.
        folder: where to run them.
        seconds: how long each may take.

    Yields:
        The role and what was printed.
    """
    page = (ROOT / "docs" / name).read_text()
    for role, text in re.findall(r"^```sh (\w+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        command = text.replace("http://127.0.0.1:8080", url)
        command = command.replace(".venv/bin/python", sys.executable)
        command = command.replace("docs/images", str(ROOT / "docs" / "images"))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=True,
        )
        yield role, done.stdout
