"""Two versions of a model at once: side by side, switched under load, recorded and replayed."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from export.cli import main as export
from server.__main__ import main
from tests.conftest import ROOT
from tests.integration.conftest import export_all, running
from tests.readme import run_page

if os.environ.get("VITRINE_URL"):
    pytest.skip("starts a server of its own", allow_module_level=True)
pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="no haproxy to be the front"
)

SOURCE = """
import torch
from torch import Tensor, nn

VERSION = "{version}"
INPUTS = ["x"]
OUTPUTS = ["y"]


class Add(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + {version}


def build():
    return Add()


def examples():
    return [(torch.ones(rows, 3),) for rows in (1, 2)]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Model `add` in two versions, each of which adds its number."""
    folder = tmp_path_factory.mktemp("versions")
    (folder / "add.py").write_text(SOURCE.format(version="1.0"))
    export_all([folder / "add.py"], folder / "store")
    (folder / "add.py").write_text(SOURCE.format(version="2.0"))
    again = [str(folder / "add.py"), "--model-version", "2.0"]
    assert export([*again, "--model-store", str(folder / "store")]) == 0
    return folder / "store"


def recording(folder):
    return {
        "VITRINE_RECORDING": "sampled",
        "VITRINE_RECORDING_RATE": "1",
        "VITRINE_RECORDING_DIR": str(folder),
    }


@pytest.fixture(scope="module")
def both(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    recorded = folder / "recorded"
    settings = recording(recorded)
    with running(store, folder, "--front", "--default", "add=1.0", **settings) as server:
        yield server, folder / "state.json", recorded


def asked(server, path="/predictions/add"):
    answer = server.post(path, [0.0, 0.0, 0.0])
    assert answer.status_code == 200, answer.text
    body = answer.json()
    value = body["outputs"]["y"][0]
    assert answer.headers["x-model-version"] == f"{value:.1f}"
    return f"{value:.1f}"


def switch(both, version):
    assert main(["default", "add", version, "--state", str(both[1])]) == 0


def get(server, path):
    return requests.get(f"{server.url}{path}", timeout=10)


def test_the_store_holds_both_files(store):
    names = {path.name for path in store.iterdir()}
    assert {"add.mar", "add-2.0.mar", "add.sample.json", "add-2.0.sample.json"} <= names


def test_each_version_answers_where_it_is_named(both):
    server, _, _ = both
    switch(both, "1.0")
    assert asked(server) == "1.0"
    for version in ("1.0", "2.0"):
        assert asked(server, f"/predictions/add/{version}") == version
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]}]}
        answer = server.post(f"/v2/models/add/versions/{version}/infer", body)
        assert answer.json()["model_version"] == version
        assert answer.headers["x-model-version"] == version
        metadata = get(server, f"/v2/models/add/versions/{version}").json()
        assert (metadata["name"], sorted(metadata["versions"])) == ("add", ["1.0", "2.0"])
        assert get(server, f"/v2/models/add/versions/{version}/ready").json()["ready"]
    assert get(server, "/v1/models/add").json() == {"name": "add", "ready": True}
    missing = server.post("/predictions/add/3.0", [0.0, 0.0, 0.0])
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    wrong = server.post("/predictions/add/2.0", [[[0.0]]])
    assert (wrong.status_code, wrong.headers["x-model-version"]) == (400, "2.0")
    paths = get(server, "/openapi.json").json()["paths"]
    assert {"/predictions/add", "/predictions/add/1.0", "/predictions/add/2.0"} <= set(paths)


def test_the_default_is_switched_under_load_without_a_failed_request(both):
    server, _, _ = both
    switch(both, "1.0")
    stop = threading.Event()

    def client(_):
        seen = []
        with requests.Session() as session:
            while not stop.is_set():
                sent = time.monotonic()
                url = f"{server.url}/predictions/add"
                answer = session.post(url, json=[0.0, 0.0, 0.0], timeout=10)
                got = answer.headers.get("x-model-version"), answer.json().get("outputs")
                seen.append((sent, time.monotonic(), answer.status_code, *got))
        return seen

    with ThreadPoolExecutor(8) as pool:
        clients = pool.map(client, range(8))
        time.sleep(1)
        began = time.monotonic()
        switch(both, "2.0")
        ended = time.monotonic()
        time.sleep(1)
        stop.set()
        answers = [one for seen in clients for one in seen]
    assert {status for _, _, status, _, _ in answers} == {200}
    for sent, got, _, version, outputs in answers:
        assert outputs == {"y": [float(version)] * 3}
        if got < began:
            assert version == "1.0"
        if sent > ended:
            assert version == "2.0"
    assert {version for _, _, _, version, _ in answers} == {"1.0", "2.0"}
    assert asked(server, "/predictions/add/1.0") == "1.0"


def test_what_is_said_of_the_model_follows_the_default(both):
    server, _, _ = both
    for version in ("1.0", "2.0"):
        switch(both, version)
        time.sleep(1.1)  # what is known of TorchServe is remembered for one
        document = get(server, "/openapi.json").json()
        answer = document["components"]["schemas"]["add.infer.answer"]
        assert answer["properties"]["model_version"] == {"const": version}


def test_a_default_that_is_kept_survives_a_restart(store, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    state = tmp_path / "state.json"
    for expected in ("2.0", "1.0"):
        with running(copy, tmp_path, "--front") as server:
            assert asked(server) == expected
            assert main(["default", "add", "1.0", "--keep", "--state", str(state)]) == 0
            assert asked(server) == "1.0"
    assert json.loads((copy / "defaults.json").read_text()) == {"add": "1.0"}


def test_a_share_of_the_traffic_goes_to_a_candidate(store, tmp_path):
    shared = ("--default", "add=1.0", "--share", "add=2.0:30")
    with running(store, tmp_path, "--front", *shared) as server:
        paths = ("/predictions/add", "/v1/models/add:predict")
        found = [asked(server, paths[turn % 2]) for turn in range(200)]
        assert {asked(server, "/predictions/add/1.0") for _ in range(20)} == {"1.0"}
    # 30 of 100; less than 15 or more than 45 is chance once in a million runs.
    assert 30 <= found.count("2.0") <= 90


def test_what_one_version_answered_is_replayed_on_the_other(both, store, tmp_path):
    server, _, recorded = both
    switch(both, "1.0")
    for number in range(300):
        answer = server.post("/predictions/add", [float(number), 1.0, -1.0])
        assert answer.status_code == 200
    file = recorded / "add.jsonl"
    deadline = time.monotonic() + 20
    while file.read_bytes().count(b"[299.0") < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert file.stat().st_mode & 0o777 == 0o600
    report = tmp_path / "report.json"
    old, new = store / "add.mar", store / "add-2.0.mar"
    command = [sys.executable, "-m", "replay", str(file), str(new), "--against", str(old)]
    done = subprocess.run(
        [*command, "--json", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(report.read_text())
    assert found["answers"]["largest_absolute"] == 1.0
    assert found["answers"]["beyond_tolerance"] == found["answers"]["compared"] >= 300
    assert found["answers"]["worst"][0]["request_id"] in file.read_text()


def test_the_page(tmp_path):
    """The blocks of docs/versions.md, beside a server of two versions that records."""
    for room in ("export", "engine", "formats", "handlers", "models", "replay", "server"):
        (tmp_path / room).symlink_to(ROOT / room)
    store = tmp_path / "model_store"
    export_all([ROOT / "models" / "digits.py"], store)
    page = run_page("versions.md", "http://127.0.0.1:8080", tmp_path, seconds=300)
    role, printed = next(page)
    assert (role, "digits-2.0.mar" in printed) == ("export", True)
    settings = recording(tmp_path / "recorded")
    with running(store, tmp_path, "--front", "--default", "digits=1.0", **settings) as server:
        sample = json.loads((store / "digits.sample.json").read_text())
        assert server.post("/predictions/digits", sample).headers["x-model-version"] == "1.0"
        role, printed = next(page)
        assert role == "switch"
        assert printed.splitlines() == [
            "digits: 1.0 is the default; beside it: 2.0",
            "digits: 2.0 is the default; beside it: 1.0",
        ]
        assert server.post("/predictions/digits", sample).headers["x-model-version"] == "2.0"
    role, printed = next(page)
    assert (role, "passed: 0 of 2 requests differ" in printed) == ("replay", True)
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is True
    assert list(page) == []
