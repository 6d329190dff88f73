"""The image, built once a session, and containers of it that are gone at the end."""

import gc
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from docker.models.containers import Container

from tests.container.compose import Project, up
from tests.container.running import Running

ROOT = Path(__file__).resolve().parents[2]
STORE = "/opt/vitrine/model_store"
BUILD_SECONDS = 1800
# Finds what a killed session left: docker rm -f $(docker ps -aq --filter label=vitrine.test)
LABEL = "vitrine.test"


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
    # As somebody would by hand: the README's `docker build` then finds everything in the cache.
    built = subprocess.run(
        ["docker", "compose", "--progress", "plain", "build"],
        cwd=ROOT,
        env={**os.environ, "VITRINE_IMAGE": "vitrine:test"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if built.returncode != 0:
        pytest.fail(built.stdout[-10_000:])
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
def examples(engine: docker.DockerClient, image: str) -> Iterator[Running]:
    """The examples, served as compose.yaml has it, for tests that leave the container as it is."""
    project = Project(engine, f"vitrine-test-{os.getpid()}", environment={"VITRINE_IMAGE": image})
    with up(project):
        yield project.containers()[0]


@pytest.fixture(scope="session")
def container_url(examples: Running) -> str:
    """Base URL of a container that serves the examples."""
    return examples.url
