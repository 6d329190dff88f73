"""What a server says of itself, and what it does, when something in it breaks or it is stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.conftest import ROOT
from tests.errors import told
from tests.integration.conftest import running
from tests.integration.test_front import PUPPET, children, command_line, wait
from tests.readme import run_page

if os.environ.get("VITRINE_URL"):
    pytest.skip("starts a server of its own", allow_module_level=True)
pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy")
BAD = "raise RuntimeError('there are no weights')"
TEXT = {"content-type": "text/plain"}


def make_archive(store, name, handler):
    with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
        model = {"modelName": name, "modelVersion": "1.0", "handler": "h.py"}
        manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("h.py", handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, exported):
    """A store with a model, a puppet, one whose GPU can be lost, and one that cannot be loaded."""
    folder = tmp_path_factory.mktemp("health")
    store = folder / "store"
    store.mkdir()
    for name in ("branch", "lost_gpu"):
        shutil.copy(exported(name).archive, store)
    make_archive(store, "puppet", PUPPET)
    make_archive(store, "broken", BAD)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with running(folder / "store", folder, "--front") as started:
        yield started


@pytest.fixture(autouse=True)
def _well(request):
    """Whatever a test breaks is mended before the next."""
    yield
    if "server" in request.fixturenames:
        url = request.getfixturevalue("server")
        wait(lambda: get(url, "/v2/health/ready").ok, 60)


def get(server, path):
    return requests.get(f"{server.url}{path}", timeout=10)


def tell(server, order):
    return server.post("/predictions/puppet", data=order, headers=TEXT)


def why(server):
    return {one["what"]: one["why"] for one in get(server, "/health").json()["problems"]}


def check(folder, *options):
    command = [sys.executable, "-m", "server", "health", "--state", str(folder / "state.json")]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout


def test_a_model_that_cannot_be_loaded_degrades_the_server_and_is_named(server, folder):
    health = get(server, "/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert why(server) == {"model broken": "its worker died 2 times while loading it"}
    states = {one["name"]: one["state"] for one in health.json()["models"]}
    expected = {"broken": "failed", "branch": "ready", "lost_gpu": "ready", "puppet": "ready"}
    assert states == expected
    code, said = check(folder)
    assert code == 0
    assert "there are no weights" in said
    assert check(folder, "--strict")[0] == 1
    # Not started again, without end.
    assert server.worker_pids("broken") == []


def test_the_lines_of_the_page_work(server, tmp_path):
    [(role, printed)] = run_page("operations.md", server.url, tmp_path)
    assert role == "health"
    answer = json.loads(printed)
    [shown] = re.findall(
        r"^```json\n(.*?)^```$",
        (ROOT / "docs" / "operations.md").read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    shown = json.loads(shown)
    names = [model["name"] for model in shown["models"]]
    answer["models"] = [model for model in answer["models"] if model["name"] in names]
    assert answer == shown


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/broken",
        "/predictions/broken/1.0",
        "/explanations/broken",
        "/v1/models/broken:predict",
        "/v2/models/broken/infer",
        "/v2/models/broken/versions/1.0/infer",
    ],
)
def test_what_is_sent_to_it_is_answered_at_once(server, path):
    answer = server.post(path, [1.0])
    assert answer.status_code == 503
    assert told(path, answer.json())["code"] == "model_failed"
    assert get(server, "/v2/models/broken/ready").status_code == 503


def test_a_real_request_was_answered_before_it_was_ready(server):
    answered = {one["name"]: one["inference"] for one in get(server, "/health").json()["models"]}
    # The puppet's archive says nothing that could be sent.
    assert answered["branch"] == "answered"
    assert answered["puppet"] == "not tried: its archive has no sample request"


def test_a_worker_that_is_killed_shows_at_once_and_so_does_its_return(server):
    assert get(server, "/v2/models/puppet/ready").ok
    os.kill(server.worker_pids("puppet")[0], signal.SIGKILL)
    wait(lambda: get(server, "/health").json()["status"] == "unready", 5)
    assert why(server)["model puppet"] == "0 of 1 workers ready"
    assert get(server, "/v2/models/branch/ready").ok
    wait(lambda: get(server, "/health").json()["status"] == "degraded", 60)
    # It is no sooner said than true.
    assert tell(server, "hello").text == "hello"


@pytest.mark.parametrize("service", [b"server.status", b"server.grpc_process"])
def test_a_service_that_dies_is_started_again(server, service):
    def pids():
        return [pid for pid in children(server.pid) if service in command_line(pid)]

    [before] = pids()
    os.kill(before, signal.SIGKILL)
    wait(lambda: pids() not in ([], [before]), 10)
    wait(lambda: get(server, "/ping").ok, 10)
    assert tell(server, "hello").text == "hello"


def test_a_gpu_that_is_lost_costs_the_requests_of_one_batch(server):
    assert server.post("/predictions/lost_gpu", [[1.0, 2.0]]).json() == {"outputs": {"y": [[2, 4]]}}
    [before] = server.worker_pids("lost_gpu")
    lost = server.post("/predictions/lost_gpu", [[-1.0, 2.0]])
    assert lost.status_code == 503, lost.text
    assert lost.json()["error"]["code"] == "worker_died"
    assert "retry-after" in lost.headers
    wait(lambda: server.worker_pids("lost_gpu") not in ([before], [-1]), 60)
    wait(lambda: get(server, "/v2/models/lost_gpu/ready").ok, 60)
    assert server.post("/predictions/lost_gpu", [[1.0, 2.0]]).status_code == 200


def test_told_to_stop_it_says_so_and_answers_what_comes_and_what_it_has(folder, tmp_path):
    options = ("--front", "--grace-seconds", "2", "--models", "puppet")
    with ThreadPoolExecutor(1) as pool, requests.Session() as session:
        with running(folder / "store", tmp_path, *options) as server:
            kept = session.get(f"{server.url}/v2/health/ready", timeout=10)
            assert (kept.status_code, kept.headers.get("connection")) == (200, None)
            waiting = pool.submit(tell, server, "sleep 4")
            time.sleep(0.5)
            os.kill(server.pid, signal.SIGTERM)
            wait(lambda: get(server, "/v2/health/ready").status_code == 503, 1)
            assert get(server, "/health").json()["status"] == "stopping"
            assert get(server, "/v2/health/live").ok
            late = session.get(f"{server.url}/v1/models", timeout=10)
            assert (late.status_code, late.headers["connection"]) == (200, "close")
            assert check(tmp_path)[0] == 1
        assert waiting.result().text == "sleep"


def test_ctrl_c_ends_the_waiting(folder, tmp_path):
    options = ("--front", "--grace-seconds", "600", "--drain-seconds", "600", "--models", "puppet")
    with ThreadPoolExecutor(1) as pool:
        # Leaving the context waits for a minute at most.
        with running(folder / "store", tmp_path, *options) as server:
            waiting = pool.submit(tell, server, "sleep 100")
            time.sleep(0.5)
            os.kill(server.pid, signal.SIGTERM)
            wait(lambda: get(server, "/v2/health/ready").status_code == 503, 5)
            os.kill(server.pid, signal.SIGINT)
        with pytest.raises(requests.ConnectionError):
            waiting.result()


def test_the_end_of_haproxy_ends_the_server_with_a_clear_line(folder, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "server", "--port", "0", "--front", "--models", "branch"]
        process = subprocess.Popen(
            [*command, "--model-store", str(folder / "store")], cwd=ROOT, stderr=log, stdout=log
        )
    try:

        def fronts():
            return [pid for pid in children(process.pid) if b"haproxy" in command_line(pid)]

        wait(lambda: fronts() != [], 60)
        os.kill(fronts()[0], signal.SIGKILL)
        assert process.wait(timeout=60) == 1
        said = (tmp_path / "log").read_text()
        assert "The front (HAProxy) ended without having been asked to (signal SIGKILL)" in said
    finally:
        process.kill()
        process.wait()
