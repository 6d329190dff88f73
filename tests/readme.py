"""README.md, read as code: its fenced blocks with their roles."""

import re
from dataclasses import dataclass

from tests.conftest import ROOT

ROLES = {"server", "test", "request", "ask", "container", "", "factory"}


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
