"""The page in a container of its own sees what the server's container logs."""

import time
import uuid

import pytest
import requests

from tests.container.compose import Project, up

pytestmark = pytest.mark.container
FILES = ("compose.yaml", "deploy/compose/observe.yaml")


@pytest.fixture(scope="module")
def project(engine, image):
    own = Project(
        engine,
        f"vitrine-observe-{uuid.uuid4().hex[:8]}",
        FILES,
        {
            "VITRINE_IMAGE": image,
            "VITRINE_OBSERVE_IMAGE": "vitrine-observe:test",
            "VITRINE_OBSERVE_PUBLISH": "127.0.0.1:",
            "VITRINE_ACTIVATION_LOG": "asked",
        },
    )
    own.run("build", "observe", timeout=1800)
    with up(own):
        yield own


def test_a_request_is_on_the_page(project):
    [server] = project.containers()
    [page] = project.containers("observe")
    picture = (b"\x00" * 63 + b"\x01") * 4
    answer = requests.post(
        f"{server.url}/predictions/digits",
        data=picture,
        headers={
            "Content-Type": "application/octet-stream",
            "X-Activations": "stats",
            "X-Correlation-Id": "in-a-container",
        },
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    address = f"http://127.0.0.1:{page.port(8090)}/m/digits/r/in-a-container"
    deadline = time.monotonic() + 30
    while (shown := requests.get(address, timeout=10)).status_code != 200:
        assert time.monotonic() < deadline, shown.text
        time.sleep(0.2)
    assert answer.headers["X-Request-Id"] in shown.text
    # The archive's baseline is there too.
    assert "baseline" in shown.text


def test_it_may_read_and_nothing_else(project):
    [page] = project.containers("observe")
    code, output = page.exec("python", "-c", "open('/var/log/vitrine/x', 'w')")
    assert code == 1
    assert "Read-only file system" in output
    assert page.exec("python", "-c", "import os; print(os.getuid())") == (0, "10001\n")
    assert page.exec("python", "-c", "import torch")[0] == 1
