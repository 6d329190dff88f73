"""The README's commands, run as written in a copy of the repository; only the port differs."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT
from tests.readme import ROLES, Block, blocks, shell

if os.environ.get("VITRINE_URL"):
    pytest.skip("starts a server of its own", allow_module_level=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's files as they are, with this Python's environment as .venv."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run(command: str, folder: Path, seconds: float = 300) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def served(clone) -> Iterator[tuple[int, Path]]:
    """`scripts/serve`, on a free port; yields it and what was printed."""
    [command] = shell("server")
    assert command.strip() == "scripts/serve"
    log = clone / "serve.log"
    with log.open("wb") as output:
        logging = {
            "VITRINE_ACTIVATION_LOG": "sampled",
            "VITRINE_ACTIVATION_LOG_DIR": str(clone / "activations"),
        }
        process = subprocess.Popen(
            ["scripts/serve", "--port", "0"],
            cwd=clone,
            env=os.environ | logging,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 300
        while log.read_text().count("curl -s") < 4:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        [port] = set(re.findall(r"http://127\.0\.0\.1:(\d+)/predictions/", log.read_text()))
        yield int(port), log
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, log.read_text()


def test_every_shell_block_has_a_role():
    roles = [block.role for block in blocks() if block.language == "sh"]
    assert set(roles) == ROLES


def test_the_test_command_is_what_ci_runs():
    [command] = shell("test")
    assert command.strip() in (ROOT / ".ci" / "run").read_text()


def test_requests_are_answered_as_printed(served):
    port, _ = served
    found = blocks()
    asked = 0
    for block, following in itertools.pairwise(found):
        if (block.language, block.role) != ("sh", "request"):
            continue
        assert following.language == "json"
        answer = json.loads(run(block.text.replace(":8080/", f":{port}/"), ROOT))
        assert_like(answer, json.loads(following.text))
        asked += 1
    assert asked >= 2


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy to be the front")
def test_the_front_says_what_is_served(served):
    port, _ = served
    [(block, following)] = [pair for pair in itertools.pairwise(blocks()) if pair[0].role == "ask"]
    answer = run(block.text.replace(":8080/", f":{port}/"), ROOT)
    assert json.loads(answer) == json.loads(following.text)


def assert_like(got, shown):
    """Equal, but that numbers may differ in their last digits from machine to machine."""
    if isinstance(shown, dict):
        assert list(got) == list(shown)
        for key in shown:
            assert_like(got[key], shown[key])
    elif isinstance(shown, list) and shown and isinstance(shown[0], dict):
        for one, other in zip(got, shown, strict=True):
            assert_like(one, other)
    elif isinstance(shown, float) or (isinstance(shown, list) and shown and shown[0] is not None):
        np.testing.assert_allclose(got, shown, rtol=5e-3, atol=1e-6)
    else:
        assert got == shown


def test_the_printed_curl_lines_work(served):
    _, log = served
    lines = [line for line in log.read_text().splitlines() if line.startswith("curl ")]
    assert len(lines) == 4
    for line in lines:
        assert "outputs" in json.loads(run(line, ROOT))


def test_the_log_is_looked_at(served, clone):
    port, _ = served
    asking = ["-H", "X-Activations: stats", "-T", str(ROOT / "docs/images/seven.png")]
    address = f"http://127.0.0.1:{port}/predictions/digits"
    subprocess.run(["curl", "-sf", *asking, address], check=True, capture_output=True, timeout=30)
    log = clone / "activations" / "digits.jsonl"
    deadline = time.monotonic() + 30
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    [command] = shell("look")
    assert "features.3" in run(command, clone)
    assert "features.3" in (clone / "report.html").read_text()
    [command] = shell("page")
    with subprocess.Popen(
        [*command.split(), "--port", "0"], cwd=clone, stdout=subprocess.PIPE, text=True
    ) as page:
        try:
            shown = requests.get(f"{page.stdout.readline().strip()}m/digits", timeout=30).text
            assert "features.3" in shown
            assert "300 rows of calibration" in shown
        finally:
            page.terminate()


def test_my_own_model(clone):
    [source] = [block for block in blocks() if block.language == "python"]
    assert isinstance(source, Block)
    (clone / source.role).write_text(source.text)
    printed = "".join(run(commands, clone) for commands in shell(""))
    assert '"labels":{"inside":"yes"}' in printed
    assert "aten::softmax" in printed
    assert "tensor([[" in printed


def test_a_module_from_the_command_line(clone):
    (clone / "my_package").mkdir()
    (clone / "my_package" / "nets.py").write_text(
        "from torch import nn\n\n\ndef make_net() -> nn.Module:\n    return nn.Linear(3, 2)\n"
    )
    save_file(torch.nn.Linear(3, 2).state_dict(), clone / "net.safetensors")
    np.save(clone / "x.npy", np.ones((2, 3), np.float32))
    [command] = shell("factory")
    assert "my_net.mar" in run(command, clone)
