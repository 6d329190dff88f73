"""The last lines that each model's workers printed, to say why one cannot be loaded."""

import re
from collections import deque
from typing import Final

__all__ = ["WorkerLines"]

# As server/log4j2.xml writes them: the thread names the worker.
_LINE: Final = re.compile(
    r"\d\d:\d\d:\d\d \[W-\d+-(?P<model>.+)-(stdout|stderr)(_MODEL_LOG)?\] (?P<text>.*)"
)
# What TorchServe's own worker prints after that is about itself.
_END: Final = "Backend worker process died."
_KEPT: Final = 60
_TOLD: Final = 20
_LONGEST: Final = 300


class WorkerLines:
    """Remembers what workers print, by `NAME_VERSION`, as TorchServe calls a version of a model."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[str]] = {}

    def note(self, line: str) -> None:
        """Take in a line of TorchServe's output."""
        found = _LINE.match(line)
        if found and found["text"].strip():
            kept = self._lines.setdefault(found["model"], deque(maxlen=_KEPT))
            kept.append(found["text"][:_LONGEST])

    def last(self, name: str, version: str) -> tuple[str, ...]:
        """The last lines of a version of a model, the oldest first."""
        lines = list(self._lines.get(f"{name}_{version}", ()))
        if _END in lines:
            del lines[len(lines) - 1 - lines[::-1].index(_END) :]
        return tuple(lines[-_TOLD:])
