"""A real server for the suite: started once, or, with VITRINE_URL set, somebody else's."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from export.cli import main as export
from tests.conftest import MODEL_FILES, ROOT

EXAMPLES = ("control_flow", "dann", "activation_mlp", "digits")
OTHERS = ("two_inputs", "dict_output", "token_lstm", "lstm_states", "half", "batch_softmax")
START_SECONDS = 240.0


@dataclass(frozen=True)
class Server:
    """A server under test.

    Attributes:
        url: base URL of the inference API.
        management, metrics: None where only the inference port can be reached.
        pid: the supervisor's, where it is ours.
    """

    url: str
    management: str | None
    metrics: str | None = None
    pid: int | None = None

    def post(self, path: str, document: object = None, **options) -> requests.Response:
        """POST a JSON document (or `data=`) with a timeout."""
        if document is not None:
            options["json"] = document
        return requests.post(f"{self.url}{path}", timeout=30, **options)

    def worker_pids(self, model: str) -> list[int]:
        """Return the process ids of a model's workers."""
        answer = requests.get(f"{self.management}/models/{model}", timeout=10)
        return [worker["pid"] for worker in answer.json()[0]["workers"]]


@contextmanager
def running(store: Path, folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Serve a store on free ports until the context ends."""
    state, log = folder / "state.json", folder / "server.log"
    command = [sys.executable, "-m", "server", "--port", "0", "--model-store", str(store)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--state", str(state), "--grace-seconds", "0", *options],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=output,
            stderr=output,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not state.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            addresses = json.loads(state.read_text())
            yield Server(
                addresses["inference"],
                addresses["management"],
                addresses["metrics"],
                addresses["pid"],
            )
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0, log.read_text()


def export_all(files: list[Path], store: Path) -> None:
    """Export model files into a store, or fail."""
    assert export(["--model-store", str(store), *map(str, files)]) == 0


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The example models, served."""
    url = os.environ.get("VITRINE_URL")
    if url:
        yield Server(url.rstrip("/"), None)
        return
    folder = tmp_path_factory.mktemp("examples")
    export_all([ROOT / "models" / f"{name}.py" for name in EXAMPLES], folder / "store")
    with running(folder / "store", folder) as started:
        yield started


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Other people's models, served by a server of their own."""
    if os.environ.get("VITRINE_URL"):
        pytest.skip("the server at VITRINE_URL holds the example models only")
    folder = tmp_path_factory.mktemp("others")
    export_all([MODEL_FILES / f"{name}.py" for name in OTHERS], folder / "store")
    with running(folder / "store", folder) as started:
        yield started
