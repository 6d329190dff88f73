"""Two replicas behind the balancer: both answer, and one that is gone is not asked."""

import os
import subprocess
import time

import pytest
import requests
import tritonclient.grpc
import tritonclient.http

from tests.container.compose import Project, up
from tests.container.conftest import ROOT

pytestmark = pytest.mark.container

BALANCER = "vitrine-balancer:test"
ROWS = [[0.5] * 16]


@pytest.fixture(scope="module")
def scaled(engine, image):
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", BALANCER, "deploy/balancer"],
        cwd=ROOT,
        timeout=600,
        check=True,
        capture_output=True,
    )
    project = Project(
        engine,
        f"vitrine-scale-{os.getpid()}",
        ("compose.yaml", "deploy/compose/scale.yaml"),
        {
            "VITRINE_IMAGE": image,
            "VITRINE_BALANCER_IMAGE": BALANCER,
            "VITRINE_CPUS": "1",
            "VITRINE_MEMORY": "2g",
        },
    )
    with up(project, "--scale", "vitrine=2"):
        yield project


@pytest.fixture
def url(scaled):
    [balancer] = scaled.containers("balancer")
    return balancer.url


def predict(url):
    answer = requests.post(f"{url}/v2/models/activation_mlp/infer", json=request(), timeout=30)
    assert answer.ok, answer.text
    return answer.json()["outputs"]


def request():
    inputs = [{"name": "features", "shape": [1, 16], "datatype": "FP32", "data": ROWS}]
    return {"inputs": inputs}


def answered(running):
    """How many predictions a replica has answered, as its own metrics say."""
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8082/metrics').read().decode())"
    code, text = running.exec("python", "-c", program)
    assert code == 0, text
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("vitrine_requests_total{") and 'endpoint="predict"' in line
    )


def test_both_replicas_answer_alike(scaled, url):
    first, second = scaled.containers()
    before = [answered(first), answered(second)]
    outputs = [predict(url) for _ in range(20)]
    assert outputs.count(outputs[0]) == 20

    def gained():
        return [answered(first) - before[0], answered(second) - before[1]]

    # They are counted beside, a moment later.
    deadline = time.monotonic() + 10
    while sum(gained()) < 20 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert sum(gained()) == 20
    assert min(gained()) > 0


def test_grpc_reaches_them_too(url):
    with tritonclient.grpc.InferenceServerClient(url.removeprefix("http://")) as client:
        assert client.is_server_ready()
        assert client.is_model_ready("activation_mlp")


def test_the_balancer_has_no_privilege_and_no_replica_is_published(scaled):
    [balancer] = scaled.containers("balancer")
    code, status = balancer.exec("bash", "-c", "echo $(</proc/1/status)")
    assert code == 0
    assert "CapEff: 0000000000000000" in status
    assert "NoNewPrivs: 1" in status
    assert "Uid: 10001 10001" in status
    for replica in scaled.containers():
        replica.container.reload()
        ports = replica.container.attrs["NetworkSettings"]["Ports"]
        assert not any(ports.values())


def test_a_replica_that_stops_costs_no_answer(scaled, url):
    first, _ = scaled.containers()
    subprocess.run(["docker", "kill", "--signal", "SIGTERM", first.container.id], check=True,
                   capture_output=True, timeout=30)  # fmt: skip
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        predict(url)
        time.sleep(0.05)
