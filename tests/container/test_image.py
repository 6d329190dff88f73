"""The image does what it says: serves when healthy, hides what it should, stops when told."""

import json
import os
import subprocess
import sys
import time
import zipfile

import pytest
import requests

from tests.container.conftest import ROOT

pytestmark = pytest.mark.container

EXAMPLES = ("activation_mlp", "control_flow", "dann", "digits")
INTERNAL_PORTS = {"management": 8081, "metrics": 8082, "gRPC": 7070, "gRPC management": 7071}
ANSWERS = """\
{prelude}
def handle(data, context):
    return None if data is None else [b'{{"from": "mounted"}}' for _ in data]
"""


@pytest.fixture
def store(tmp_path):
    """A folder that the image's user can read, unlike pytest's own."""
    tmp_path.chmod(0o755)
    return tmp_path


def make_archive(path, name, prelude=""):
    model = {"modelName": name, "modelVersion": "1.0", "handler": "h.py"}
    manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("h.py", ANSWERS.format(prelude=prelude))
    path.chmod(0o644)
    return path


def post(url, name):
    return requests.post(f"{url}/predictions/{name}", data=b"{}", timeout=30)


def test_the_examples_are_served(examples):
    code, output = examples.exec("python", "-m", "server", "health")
    assert (code, output) == (0, "ready\n")
    for name in EXAMPLES:
        assert f"\n{name} 1.0\ncurl -s http://127.0.0.1:8080/predictions/{name} " in examples.log
        code, sample = examples.exec("cat", f"model_store/{name}.sample.json")
        assert code == 0
        answer = requests.post(
            f"{examples.url}/predictions/{name}", json=json.loads(sample), timeout=30
        )
        assert answer.status_code == 200, answer.text


def test_healthy_is_never_before_every_model_is_ready(start, store):
    make_archive(store / "quick.mar", "quick")
    make_archive(store / "slow.mar", "slow", prelude="import time; time.sleep(12)")
    running = start(store=store)
    seen = set()
    deadline = time.monotonic() + 180
    while "healthy" not in seen:
        assert time.monotonic() < deadline, running.log
        # In this order: readiness only ever comes, so what is healthy has to be ready now.
        health = running.health
        ready, _ = running.exec("python", "-m", "server", "health")
        assert health != "healthy" or ready == 0, running.log
        seen.add(health)
        time.sleep(0.5)
    assert seen == {"starting", "healthy"}
    probes = running.container.attrs["State"]["Health"]["Log"]
    assert probes[0]["ExitCode"] == 1
    assert "not ready yet" in probes[0]["Output"]


def test_it_does_not_run_as_root_nor_can_it_change_itself(examples):
    assert examples.exec("id", "-u") == (0, "10001\n")
    users = {row[1] for row in examples.container.top(ps_args="-eo pid,uid")["Processes"]}
    assert users == {"10001"}
    code, _ = examples.exec("sh", "-c", "touch /opt/vitrine/x || touch model_store/x")
    assert code != 0


def test_only_inference_is_declared_and_listens_for_others(start, examples):
    assert set(examples.container.image.attrs["Config"]["ExposedPorts"]) == {"8080/tcp"}
    [(network, address)] = examples.container.attrs["NetworkSettings"]["Networks"].items()
    attempt = (
        "import socket, sys\n"
        "for port in map(int, sys.argv[2:]):\n"
        "    with socket.socket() as s:\n"
        "        s.settimeout(5)\n"
        "        print(port, s.connect_ex((sys.argv[1], port)) == 0)\n"
    )
    ports = [8080, *INTERNAL_PORTS.values()]
    other = start(
        *("-c", attempt, address["IPAddress"], *map(str, ports)),
        entrypoint=["python"],
        network=network,
    )
    assert other.container.wait(timeout=60)["StatusCode"] == 0, other.log
    reachable = dict(line.split() for line in other.log.splitlines())
    assert reachable == {str(port): str(port == 8080) for port in ports}


def test_publishing_an_internal_port_does_not_open_it(start):
    running = start("--models", "control_flow", publish=(8080, *INTERNAL_PORTS.values()))
    running.wait_healthy()
    assert requests.get(f"{running.url}/ping", timeout=10).status_code == 200
    for port in INTERNAL_PORTS.values():
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{running.port(port)}/models", timeout=10)


def test_stop_ends_it_with_0_long_before_it_would_be_killed(start):
    running = start("--models", "control_flow")
    running.wait_healthy()
    begun = time.monotonic()
    running.container.stop(timeout=60)
    assert time.monotonic() - begun < 30
    running.container.reload()
    state = running.container.attrs["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False), running.log
    assert "Stopping." in running.log


def test_it_can_be_started_again(start):
    running = start("--models", "control_flow")
    running.wait_healthy()
    running.container.restart(timeout=60)
    running.wait_healthy()
    assert running.log.count("Ready: ") == 2


def test_there_is_no_compiler_and_nothing_that_only_building_needs(examples):
    code, found = examples.exec(
        "sh", "-c", "for tool in cc c++ gcc g++ clang make; do command -v $tool; done; true"
    )
    assert (code, found) == (0, "")
    code, found = examples.exec("ls", "/opt/vitrine")
    assert found.split() == ["config.properties", "formats", "model_store", "server"]
    assert examples.exec("python", "-c", "import sklearn")[0] != 0


def test_a_mounted_store_is_served_instead(start, store):
    make_archive(store / "mine.mar", "mine")
    running = start(store=store)
    running.wait_healthy()
    assert post(running.url, "mine").json() == {"from": "mounted"}
    assert post(running.url, "digits").status_code == 404


def test_a_corrupt_archive_is_left_out_by_name_and_the_others_are_served(start, store):
    whole = make_archive(store / "mine.mar", "mine").read_bytes()
    (store / "cut.mar").write_bytes(whole[: len(whole) // 2])
    running = start(store=store)
    running.wait_healthy()
    assert post(running.url, "mine").json() == {"from": "mounted"}
    assert "Left out: /opt/vitrine/model_store/cut.mar" in running.log
    assert "Traceback" not in running.log


def test_it_ends_where_only_a_corrupt_archive_is_left(start, store):
    whole = make_archive(store / "cut.mar", "mine").read_bytes()
    (store / "cut.mar").write_bytes(whole[: len(whole) // 2])
    running = start(store=store)
    assert running.container.wait(timeout=60)["StatusCode"] == 1
    assert "cut.mar" in running.log
    assert "nothing is left to serve" in running.log
    assert "Traceback" not in running.log


def test_a_model_that_cannot_load_is_named_with_its_traceback_and_the_others_are_served(
    start, store
):
    make_archive(store / "mine.mar", "mine")
    make_archive(store / "broken.mar", "broken", prelude="import not_there")
    running = start(store=store)
    running.wait_healthy()
    assert post(running.url, "mine").json() == {"from": "mounted"}
    answer = post(running.url, "broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_failed")
    assert "Model 'broken' (broken.mar) cannot be served" in running.log
    assert "ModuleNotFoundError: No module named 'not_there'" in running.log
    strict = start("--strict", store=store)
    assert strict.container.wait(timeout=180)["StatusCode"] == 1
    assert "Model 'broken' (broken.mar) cannot be served" in strict.log


def test_the_integration_tests_pass_against_it(container_url):
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/integration", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "VITRINE_URL": container_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout
    assert " passed" in outcome.stdout
