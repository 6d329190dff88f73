"""The condition of a server: live, ready, degraded, and what is wrong with which model.

The supervisor finds it out (`server.monitor`) and writes it to a file; the services behind the
front and `python -m server health` read it (`server.watch`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from server.files import replace_file

__all__ = ["FAILED", "LOADING", "READY", "RECOVERING", "Condition", "ModelCondition"]

#: No worker has loaded it yet.
LOADING: Final = "loading"
#: A worker answers.
READY: Final = "ready"
#: Its workers are gone and being started again, or its sample request fails.
RECOVERING: Final = "recovering"
#: It was given up.
FAILED: Final = "failed"


@dataclass(frozen=True)
class ModelCondition:
    """One version of a model.

    Attributes:
        name, version: As in URLs.
        state: `LOADING`, `READY`, `RECOVERING` or `FAILED`.
        workers: How many are alive and have loaded it.
        workers_expected: How many there should be.
        inference: What became of the last request that the server itself sent to it: "answered",
            an error, or "not tried".
        problem: What is wrong, of one that is ready too; None when nothing is.
        lines: The last lines that its worker printed, of one that was given up.
        restarts: How often a worker was there again in another process.
    """

    name: str
    version: str
    state: str
    workers: int = 0
    workers_expected: int = 1
    inference: str = "not tried"
    problem: str | None = None
    lines: tuple[str, ...] = ()
    restarts: int = 0

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self.state == READY


@dataclass(frozen=True)
class Condition:
    """What the supervisor knows.

    Attributes:
        live: TorchServe answers.
        draining: A stop was asked for: what was accepted is answered, more should not come.
        models: Every version of every model.
        parts: What is wrong with what is no model, such as an archive that was left out.
    """

    live: bool = False
    draining: bool = False
    models: tuple[ModelCondition, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether every model answers that was not given up, and there is one."""
        kept = [one for one in self.models if one.state != FAILED]
        return self.live and not self.draining and bool(kept) and all(one.ready for one in kept)

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong, by the name of what it is wrong with."""
        several = [one.name for one in self.models]
        found = {}
        for one in self.models:
            if one.problem is not None:
                version = f" {one.version}" if several.count(one.name) > 1 else ""
                found[f"model {one.name}{version}"] = one.problem
        return found | dict(self.parts)

    @property
    def status(self) -> str:
        """In a word: stopping, ready, degraded (ready, and something is wrong), or unready."""
        if self.draining:
            return "stopping"
        if not self.ready:
            return "unready"
        return "degraded" if self.problems else "ready"

    def problem(self, name: str, version: str | None = None) -> str | None:
        """Why a model is not ready; None when it is.

        Args:
            name: The model's name.
            version: One of its versions; None for all of them.
        """
        if self.draining:
            return "the server is stopping"
        if not self.live:
            return "TorchServe does not answer"
        chosen = [one for one in self.models if one.name == name]
        chosen = [one for one in chosen if version is None or one.version == version]
        if not chosen:
            return "not loaded by TorchServe"
        waiting = [one.problem or one.state for one in chosen if not one.ready]
        return "; ".join(waiting) or None

    def public(self) -> dict[str, Any]:
        """What anybody may know: all but the lines that workers print."""
        models = [
            {
                "name": one.name,
                "version": one.version,
                "state": one.state,
                "workers": {"ready": one.workers, "expected": one.workers_expected},
                "inference": one.inference,
            }
            for one in self.models
        ]
        return {
            "status": self.status,
            "live": self.live,
            "ready": self.ready,
            "models": models,
            "problems": [{"what": what, "why": why} for what, why in self.problems.items()],
        }

    def write(self, path: Path) -> None:
        """Write it in one step: whoever reads it reads all of it."""
        replace_file(path, json.dumps(asdict(self)).encode(), 0o600)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            OSError: There is nothing to be read.
        """
        found = json.loads(path.read_text(encoding="utf-8"))
        models = (ModelCondition(**one | {"lines": tuple(one["lines"])}) for one in found["models"])
        return cls(**found | {"models": tuple(models)})
