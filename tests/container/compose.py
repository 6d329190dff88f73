"""compose.yaml, brought up under a name of its own and taken down again."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker

from tests.container.running import Running

ROOT = Path(__file__).resolve().parents[2]
UP_SECONDS = 300


@dataclass(frozen=True)
class Project:
    """A compose project.

    Attributes:
        engine: The Docker engine.
        name: Of the project.
        files: Of the configuration, relative to the root of the repository.
        environment: What they fill in.
    """

    engine: docker.DockerClient
    name: str
    files: tuple[str, ...] = ("compose.yaml",)
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, timeout: float = UP_SECONDS) -> str:
        """Run `docker compose` with arguments.

        Returns:
            What it printed.
        """
        files = [part for file in self.files for part in ("--file", file)]
        done = subprocess.run(
            ["docker", "compose", "--project-name", self.name, *files, *arguments],
            cwd=ROOT,
            # A free port of the loopback.
            env={**os.environ, "VITRINE_PUBLISH": "127.0.0.1:", **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr}\n{self._logs() if 'up' in arguments else ''}"
        return done.stdout

    def containers(self, service: str = "vitrine") -> list[Running]:
        """Return the containers of a service."""
        names = self.run("ps", "--quiet", service).split()
        return [Running(self.engine.containers.get(name)) for name in names]

    def _logs(self) -> str:
        return self.run("logs", "--no-color")[-20_000:]


@contextmanager
def up(project: Project, *options: str) -> Iterator[Project]:
    """Bring a project up, healthy, and take it down with its volumes at the end."""
    try:
        project.run("up", "--detach", "--wait", "--no-build", *options)
        yield project
    finally:
        project.run("down", "--volumes", "--timeout", "10")
