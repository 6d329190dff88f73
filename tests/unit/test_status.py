"""The status service over HTTP, beside a supervisor that says what it is told."""

import json
import shutil
import subprocess
import threading
import time
import tomllib
from itertools import count
from pathlib import Path

import pytest
import requests
import uvicorn

import server
from formats.signature import Signature, TensorSpec
from server.catalog import Catalog, Served
from server.condition import FAILED, READY, RECOVERING, Condition, ModelCondition
from server.config import DEFAULT_CONFIG, Config
from server.endpoints import application
from server.errors import UsageError
from server.front import Front, find_haproxy
from server.lookup import Lookup
from server.readiness import NotListening
from server.unix_http import Client
from server.watch import DefaultWatch, Watch
from tests.conftest import ROOT
from tests.errors import told

X, Y = TensorSpec("x", "float32", (-1, 2)), TensorSpec("y", "int64", (-1,))
SIGNATURE = Signature("m", "1.0", "", (X,), (Y,), True)
CLOSE = {"Connection": "close"}
CATALOG = Catalog([Served("m", "1.0", SIGNATURE), Served("m", "2.0"), Served("other", "1.0")])


VERSIONS = [("m", "1.0"), ("m", "2.0"), ("other", "1.0")]


class Supervisor:
    """Says which versions are ready."""

    def __init__(self, path):
        self._path = path
        self.say()

    def say(self, *, missing=(), failed=(), **facts):
        models = [
            ModelCondition(name, version, state, problem=problem)
            for name, version in VERSIONS
            for state, problem in [
                (FAILED, "it died")
                if (name, version) in failed
                else (RECOVERING, "0 of 1 workers ready")
                if (name, version) in missing
                else (READY, None)
            ]
        ]
        Condition(**{"live": True, "models": tuple(models), **facts}).write(self._path)


@pytest.fixture
def supervisor(tmp_path):
    return Supervisor(tmp_path / "condition.json")


@pytest.fixture
def defaults(monkeypatch):
    """Default versions by model, as TorchServe says them."""
    said = {"m": "1.0"}

    def default_version(management, name, timeout):
        if said[name] is None:
            raise NotListening("gone")
        return said[name]

    monkeypatch.setattr("server.watch.default_version", default_version)
    return said


@pytest.fixture
def ask(supervisor, defaults, tmp_path):
    watch = Watch(tmp_path / "condition.json")
    ticks = count(step=2)
    lookup = Lookup(CATALOG, DefaultWatch("http://x", clock=lambda: next(ticks)))
    app = application(
        CATALOG, watch, lookup, lambda served: {"defaults": [one.version for one in served]}
    )
    service = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=service.run)
    thread.start()
    while not service.started:
        time.sleep(0.01)
    port = service.servers[0].sockets[0].getsockname()[1]
    yield lambda path, method="GET": requests.request(
        method, f"http://127.0.0.1:{port}{path}", timeout=5
    )
    service.should_exit = True
    thread.join(10)


def test_all_is_well(ask):
    assert ask("/ping").json() == {"status": "Healthy"}
    assert ask("/v2/health/ready").json() == {"ready": True}
    assert ask("/v2/health/live").json() == {"live": True}
    assert ask("/v1/models").json() == {"models": ["m", "other"]}
    assert ask("/v2/").json()["name"] == "vitrine"
    assert ask("/openapi.json").json() == {"defaults": ["1.0", "1.0"]}


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


def test_a_default_that_was_switched_shows_everywhere(ask, defaults):
    defaults["m"] = "2.0"
    assert ask("/v2/models/m").json()["inputs"] == []
    assert ask("/openapi.json").json() == {"defaults": ["2.0", "1.0"]}
    # Where TorchServe no longer tells, the one that it was started with.
    defaults["m"] = None
    assert ask("/v2/models/m").json()["inputs"] != []


def test_a_default_is_asked_for_once_a_second(monkeypatch):
    asked, now = [], [0.0]
    monkeypatch.setattr("server.watch.default_version", lambda *what: asked.append(what))
    watch = DefaultWatch("http://x", clock=lambda: now[0])
    for moment in (0.0, 0.9, 1.0, 1.5, 2.1):
        now[0] = moment
        watch.default("m")
    assert len(asked) == 3


def test_one_version_that_is_not_ready(ask, supervisor):
    supervisor.say(missing=[("m", "2.0")])
    assert ask("/v2/models/m/versions/1.0/ready").json() == {"name": "m", "ready": True}
    answer = ask("/v2/models/m/versions/2.0/ready")
    assert (answer.status_code, answer.json()) == (503, {"name": "m", "ready": False})
    assert ask("/v2/models/m/ready").status_code == 503
    assert ask("/v1/models/m").status_code == 503
    assert ask("/v2/models/other/ready").status_code == 200
    assert ask("/ping").json()["models"] == {"m": "0 of 1 workers ready"}
    assert ask("/v2/health/live").status_code == 200
    health = ask("/health")
    assert (health.status_code, health.json()["status"]) == (503, "unready")
    assert health.json()["problems"] == [{"what": "model m 2.0", "why": "0 of 1 workers ready"}]


def test_a_model_that_was_given_up_does_not_keep_the_others_from_being_ready(ask, supervisor):
    supervisor.say(failed=[("other", "1.0")])
    assert ask("/ping").status_code == ask("/v2/health/ready").status_code == 200
    assert ask("/v2/models/other/ready").status_code == 503
    health = ask("/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert health.json()["problems"] == [{"what": "model other", "why": "it died"}]


def test_a_server_that_stops_is_live_and_not_ready(ask, supervisor):
    supervisor.say(draining=True)
    assert ask("/v2/health/live").status_code == 200
    for path in ("/ping", "/health", "/v2/health/ready", "/v2/models/m/ready"):
        assert ask(path).status_code == 503
    assert ask("/health").json()["status"] == "stopping"


def test_nothing_is_ready_when_torchserve_does_not_answer(ask, supervisor):
    supervisor.say(live=False)
    for path in ("/ping", "/health", "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready"):
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
    front.marks_file.touch()
    command = [*front.command(), "-c"]
    checked = subprocess.run(
        command, env=front.environment(config, 30), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy")
def test_a_front_with_nothing_behind_it_says_so_in_the_form_of_the_path(tmp_path):
    config = Config.read(DEFAULT_CONFIG)
    front = Front(Path(shutil.which("haproxy")), tmp_path, config.addresses())
    front.marks_file.touch()
    public = tmp_path / "public.sock"
    environment = front.environment(config, 30) | {"VITRINE_BIND": f"unix@{public}"}
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
