"""The README's container commands, run as written, but for the name, the port and --detach."""

import subprocess
import time

import docker
import pytest
import requests

from tests.conftest import ROOT
from tests.readme import shell

pytestmark = pytest.mark.container

BUILD_SECONDS = 1800
NAME = "vitrine-readme-test"


def test_build_and_run(engine: docker.DockerClient):
    [commands] = shell("container")
    build, run = commands.strip().splitlines()
    assert build == "docker build -t vitrine ."
    # What the README tags `vitrine` must not replace an image of that name on this machine.
    build, run = build.replace("vitrine", NAME), run.replace(" vitrine", f" {NAME}")
    run = run.replace("8080:8080", f"127.0.0.1::8080 --detach --name {NAME}")
    subprocess.run(build.split(), cwd=ROOT, timeout=BUILD_SECONDS, check=True, capture_output=True)
    subprocess.run(run.split(), timeout=60, check=True, capture_output=True)
    container = engine.containers.get(NAME)
    try:
        deadline = time.monotonic() + 180
        while container.attrs["State"]["Health"]["Status"] != "healthy":
            assert time.monotonic() < deadline, container.logs().decode()
            time.sleep(0.5)
            container.reload()
        port = container.ports["8080/tcp"][0]["HostPort"]
        url = f"http://127.0.0.1:{port}/predictions/control_flow"
        assert "outputs" in requests.post(url, json=[1] * 10, timeout=30).json()
    finally:
        container.remove(force=True)
