"""The status service over HTTP, before a management API that is a dictionary."""

import json
import shutil
import subprocess
import threading
import time
import tomllib
from pathlib import Path

import pytest
import requests
import uvicorn

import server
from formats.signature import Signature, TensorSpec
from server.catalog import Catalog, Served
from server.config import DEFAULT_CONFIG, Config
from server.endpoints import application
from server.errors import UsageError
from server.front import Front, find_haproxy
from server.readiness import NotListening
from server.unix_http import Client
from server.watch import Watch
from tests.conftest import ROOT
from tests.errors import told

X, Y = TensorSpec("x", "float32", (-1, 2)), TensorSpec("y", "int64", (-1,))
SIGNATURE = Signature("m", "1.0", "", (X,), (Y,), True)
CLOSE = {"Connection": "close"}
CATALOG = Catalog([Served("m", "1.0", SIGNATURE), Served("m", "2.0"), Served("other", "1.0")])


class Management:
    """Describes models, counts how often it was asked, and can be slow or gone."""

    def __init__(self):
        self.ready = {"m": ["1.0", "2.0"], "other": ["1.0"]}
        self.asked, self.gone, self.slow = 0, False, 0.0

    def __call__(self, url, name, timeout):
        self.asked += 1
        time.sleep(self.slow)
        if self.gone:
            raise NotListening("gone")
        versions = CATALOG.versions(name)
        return [
            {
                "modelVersion": version,
                "minWorkers": 1,
                "workers": [
                    {"id": "1", "pid": 1, "status": "READY" if version in self.ready[name] else "X"}
                ],
            }
            for version in versions
        ]


@pytest.fixture
def management(monkeypatch):
    described = Management()
    monkeypatch.setattr("server.watch.descriptions", described)
    return described


@pytest.fixture
def ask(management):
    now = [0.0]
    app = application(CATALOG, Watch("http://x", clock=lambda: now[0]), {"openapi": "3.1.0"})
    service = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=service.run)
    thread.start()
    while not service.started:
        time.sleep(0.01)
    port = service.servers[0].sockets[0].getsockname()[1]

    def ask(path, method="GET"):
        now[0] += 2  # what was remembered is old
        return requests.request(method, f"http://127.0.0.1:{port}{path}", timeout=5)

    yield ask
    service.should_exit = True
    thread.join(10)


def test_all_is_well(ask):
    assert ask("/ping").json() == {"status": "Healthy"}
    assert ask("/v2/health/ready").json() == {"ready": True}
    assert ask("/v2/health/live").json() == {"live": True}
    assert ask("/v1/models").json() == {"models": ["m", "other"]}
    assert ask("/v2/").json()["name"] == "vitrine"
    assert ask("/openapi.json").json() == {"openapi": "3.1.0"}


def test_metadata_comes_from_the_signature(ask):
    wanted = {
        "name": "m",
        "versions": ["1.0", "2.0"],
        "platform": "pytorch_libtorch",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
    }
    assert ask("/v2/models/m").json() == wanted
    assert ask("/v2/models/m/versions/1.0").json() == wanted
    assert ask("/v2/models/m/versions/2.0").json()["inputs"] == []


def test_one_version_that_is_not_ready(ask, management):
    management.ready["m"] = ["1.0"]
    assert ask("/v2/models/m/versions/1.0/ready").json() == {"name": "m", "ready": True}
    answer = ask("/v2/models/m/versions/2.0/ready")
    assert (answer.status_code, answer.json()) == (503, {"name": "m", "ready": False})
    assert ask("/v2/models/m/ready").status_code == 503
    assert ask("/v1/models/m").status_code == 503
    assert ask("/v2/models/other/ready").status_code == 200
    assert ask("/ping").json()["models"] == {"m": "0 of 1 workers ready"}
    assert ask("/v2/health/live").status_code == 200


def test_nothing_is_ready_when_torchserve_does_not_answer(ask, management):
    management.gone = True
    for path in ("/ping", "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready"):
        assert ask(path).status_code == 503
    assert ask("/v2/models/m").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/models/none", 404, "model_not_found"),
        ("GET", "/v2/models/m/versions/3", 404, "model_not_found"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/v2/models/%C3%A9", 404, "model_not_found"),
        ("GET", "/v2/nothing", 404, "not_found"),
        ("GET", "/%762/nothing", 404, "not_found"),
        ("GET", "/v2nothing", 404, "not_found"),
        ("POST", "/v2", 405, "method_not_allowed"),
        ("POST", "/ping", 405, "method_not_allowed"),
    ],
)
def test_errors_have_the_form_of_their_path(ask, method, path, status, code):
    answer = ask(path, method)
    assert answer.status_code == status
    assert answer.content.isascii()
    assert told(answer.url, answer.json())["code"] == code
    assert answer.headers.get("allow") == ("GET, HEAD" if status == 405 else None)


def test_probes_do_not_pile_up(management):
    management.slow = 0.2
    watch = Watch("http://x")
    threads = [threading.Thread(target=watch.problem, args=("m",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert management.asked == 1


def test_a_front_that_is_wanted_has_to_be_installed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert find_haproxy(None) is None
    assert find_haproxy(False) is None
    with pytest.raises(UsageError, match="--no-front"):
        find_haproxy(True)


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert server.__version__ == project["version"]


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy")
def test_haproxy_takes_its_configuration(tmp_path):
    config = Config.read(DEFAULT_CONFIG)
    front = Front(Path(shutil.which("haproxy")), tmp_path, config.addresses())
    command = [*front.command(), "-c"]
    checked = subprocess.run(
        command, env=front.environment(config), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy")
def test_a_front_with_nothing_behind_it_says_so_in_the_form_of_the_path(tmp_path):
    config = Config.read(DEFAULT_CONFIG)
    front = Front(Path(shutil.which("haproxy")), tmp_path, config.addresses())
    public = tmp_path / "public.sock"
    environment = front.environment(config) | {"VITRINE_BIND": f"unix@{public}"}
    process = subprocess.Popen(front.command(), env=environment)
    try:
        deadline = time.monotonic() + 10
        while not public.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for path in ("/predictions/m", "/v2/models/m/infer", "/v2/models/m", "/ping"):
            answer = Client(str(public)).post(path, b"", CLOSE, timeout=10)
            assert answer.status == 502
            assert told(path, json.loads(answer.body))["code"] == "server_unreachable"
    finally:
        process.terminate()
        process.wait(timeout=10)
