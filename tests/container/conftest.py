"""The image, built once a session, and containers of it that are gone at the end."""

import gc
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from docker.errors import BuildError, DockerException
from docker.models.containers import Container

ROOT = Path(__file__).resolve().parents[2]
STORE = "/opt/vitrine/model_store"
BUILD_SECONDS = 1800
HEALTHY_SECONDS = 180
# Finds what a killed session left: docker rm -f $(docker ps -aq --filter label=vitrine.test)
LABEL = "vitrine.test"


@dataclass(frozen=True)
class Running:
    """A container and how the host reaches it."""

    container: Container

    def port(self, inside: int = 8080) -> int:
        """The host's port for one of the container's."""
        self.container.reload()
        return int(self.container.ports[f"{inside}/tcp"][0]["HostPort"])

    @property
    def url(self) -> str:
        """Base URL of the inference API."""
        return f"http://127.0.0.1:{self.port()}"

    @property
    def health(self) -> str:
        """What the engine says: starting, healthy or unhealthy."""
        self.container.reload()
        return str(self.container.attrs["State"]["Health"]["Status"])

    @property
    def log(self) -> str:
        """What the container printed."""
        return self.container.logs().decode()

    def exec(self, *command: str) -> tuple[int, str]:
        """Run a command inside.

        Returns:
            Its exit code and output.
        """
        code, output = self.container.exec_run(list(command))
        return code, output.decode()

    def wait_healthy(self) -> None:
        """Wait until the engine says healthy; fail if the container ends or takes too long."""
        deadline = time.monotonic() + HEALTHY_SECONDS
        while self.health != "healthy":
            assert self.container.status == "running", self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.5)


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """A Docker engine; the tests are skipped without one, and fail in CI."""
    client, reason = None, ""
    try:
        client = docker.from_env(timeout=120)
    except DockerException as error:
        reason = f"no Docker engine answers: {error}"
    if client is None:
        # The library forgets its socket when nobody answers.
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            gc.collect()
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient) -> str:
    """The image under test: built from this checkout, or the one that VITRINE_IMAGE names."""
    name = os.environ.get("VITRINE_IMAGE")
    if name:
        return name
    arguments = {key: os.environ[key] for key in ("TORCH_INDEX_URL",) if key in os.environ}
    try:
        engine.images.build(
            path=str(ROOT),
            tag="vitrine:test",
            buildargs=arguments,
            rm=True,
            forcerm=True,
            timeout=BUILD_SECONDS,
        )
    except BuildError as error:
        lines = [str(line.get("stream", "")) for line in error.build_log]
        pytest.fail(f"{error}\n{''.join(lines)[-10_000:]}")
    return "vitrine:test"


Start = Callable[..., Running]


@pytest.fixture(scope="session")
def start_session(engine: docker.DockerClient, image: str) -> Iterator[Start]:
    """Start containers that live until the end of the session."""
    yield from _starter(engine, image)


@pytest.fixture
def start(engine: docker.DockerClient, image: str) -> Iterator[Start]:
    """Start containers that live until the end of the test."""
    yield from _starter(engine, image)


def _starter(engine: docker.DockerClient, image: str) -> Iterator[Start]:
    started: list[Container] = []

    def start(
        *command: str, store: Path | None = None, publish: tuple[int, ...] = (8080,), **options
    ) -> Running:
        volumes: Mapping[str, Mapping[str, str]] = (
            {str(store): {"bind": STORE, "mode": "ro"}} if store else {}
        )
        container = engine.containers.run(
            image,
            list(command),
            detach=True,
            labels=[LABEL],
            volumes=volumes,
            # A free port of the host's loopback.
            ports={f"{port}/tcp": ("127.0.0.1", None) for port in publish},
            **options,
        )
        started.append(container)
        return Running(container)

    yield start
    for container in started:
        container.remove(force=True, v=True)


@pytest.fixture(scope="session")
def examples(start_session: Start) -> Running:
    """A healthy container that serves the examples, for tests that leave it as it is."""
    running = start_session()
    running.wait_healthy()
    return running


@pytest.fixture(scope="session")
def container_url(examples: Running) -> str:
    """Base URL of a container that serves the examples."""
    return examples.url
