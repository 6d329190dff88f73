"""The activation log of a running server, when its disk fails: predictions go on, drops count."""

import json
import resource
import shutil
import time
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT
from tests.integration.conftest import export_all, running

MODEL = "activation_mlp"
SECONDS = 30.0


class Logged:
    """A server that logs every request, and its log."""

    def __init__(self, server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.file = folder / f"{MODEL}.jsonl"
        self.sample = json.loads((folder.parent / "store" / f"{MODEL}.sample.json").read_text())
        self._sent = 0

    def ask(self) -> str:
        """Send one request, which must be answered; return the id it goes by."""
        self._sent += 1
        name = f"request-{self._sent}"
        headers = {"X-Correlation-Id": name}
        answer = self.server.post(f"/predictions/{MODEL}", self.sample, headers=headers)
        assert answer.status_code == 200, answer.text
        return name

    def logged(self) -> set[str]:
        """The ids in the log, every line of which must be whole."""
        if not self.file.is_file():
            return set()
        lines = self.file.read_text().splitlines()
        # Lines about units have none.
        return {json.loads(line).get("correlation_id") for line in lines}

    def counted(self, what: str) -> float:
        """What the metrics port says of records."""
        text = requests.get(f"{self.server.metrics}/metrics", timeout=10).text
        # TorchServe's own name, or the front's.
        name = f"vitrine_activation_records_{what}"
        starts = (f"{name}{{", f"{name}_total{{")
        lines = [line for line in text.splitlines() if line.startswith(starts)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def writer_pids(self) -> list[int]:
        """The processes that write this log."""
        pids = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(self.file).encode() in arguments:
                pids.append(int(process.name))
        return pids

    def until_logged(self) -> None:
        """Ask until a request arrives in the log."""
        until(lambda: self.ask() in wait_briefly(self.logged))

    def until_dropped(self) -> None:
        """Ask until the drop counter rises; what it counts is told with a later request."""
        before = self.counted("dropped")
        until(lambda: bool(self.ask()) and self.counted("dropped") > before)


def wait_briefly(look):
    time.sleep(0.2)
    return look()


def until(condition) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    export_all([ROOT / "models" / f"{MODEL}.py"], folder / "store")
    log = folder / "log"
    settings = {
        "VITRINE_ACTIVATION_LOG": "sampled",
        "VITRINE_ACTIVATION_LOG_RATE": "1",
        "VITRINE_ACTIVATION_LOG_DIR": str(log),
    }
    with running(folder / "store", folder, **settings) as server:
        yield Logged(server, log)


def test_every_request_is_logged(served):
    names = {served.ask() for _ in range(20)}
    until(lambda: names <= served.logged())


def test_a_deleted_folder_is_made_anew(served):
    served.until_logged()
    shutil.rmtree(served.folder)
    served.until_logged()


def test_a_folder_that_cannot_be_written_drops_counts_and_resumes(served):
    served.until_logged()
    shutil.rmtree(served.folder)
    # Not even root can write below a regular file.
    served.folder.touch()
    served.until_dropped()
    served.folder.unlink()
    served.until_logged()


def test_a_full_disk_drops_counts_and_resumes(served):
    served.until_logged()
    # A file that must not grow is, to the writer, a full disk.
    size = served.file.stat().st_size
    hard = {}
    for pid in served.writer_pids():
        _, hard[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard[pid]))
    assert hard
    served.until_dropped()
    assert served.file.stat().st_size <= size
    for pid, limit in hard.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
    served.until_logged()
