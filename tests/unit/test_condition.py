"""The condition of a server: what makes it ready, degraded or not, and what is given up."""

import itertools
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from server import monitor, version_watch
from server.archives import Archive
from server.condition import FAILED, LOADING, READY, RECOVERING, Condition, ModelCondition
from server.errors import ServingError
from server.liveness import alive
from server.monitor import Monitor
from server.processes import Processes
from server.readiness import NotListening
from server.sample_request import Outcome
from server.version_watch import Limits, VersionWatch
from server.watch import Watch
from server.worker_lines import WorkerLines

ARCHIVE = Archive(Path("m.mar"), "m", "1.0")
GOOD = ModelCondition("good", "1.0", READY, 1, 1, "answered")
SHORT = ModelCondition("short", "1.0", READY, 1, 2, "answered", "1 of 2 workers ready")
GONE = ModelCondition("gone", "1.0", RECOVERING, 0, 1, "answered", "0 of 1 workers ready")
LOST = ModelCondition("lost", "1.0", FAILED, 0, 0, "not tried", "it died", ("a line",))


@pytest.mark.parametrize(
    ("models", "status", "problems"),
    [
        ([GOOD], "ready", []),
        ([GOOD, SHORT], "degraded", ["model short"]),
        ([GOOD, LOST], "degraded", ["model lost"]),
        ([GOOD, GONE], "unready", ["model gone"]),
        ([LOST], "unready", ["model lost"]),
        ([], "unready", []),
    ],
)
def test_ready_is_every_model_that_was_not_given_up(models, status, problems):
    condition = Condition(live=True, models=tuple(models))
    assert condition.status == status
    assert condition.ready == (status in ("ready", "degraded"))
    assert list(condition.problems) == problems


def test_what_is_no_model_degrades_and_a_stop_goes_before_all():
    parts = {"archive 1": "x.mar is damaged"}
    assert Condition(True, models=(GOOD,), parts=parts).status == "degraded"
    stopping = Condition(True, draining=True, models=(GOOD,))
    assert (stopping.status, stopping.ready) == ("stopping", False)
    assert stopping.problem("good") == "the server is stopping"
    assert Condition(False, models=(GOOD,)).problem("good") == "TorchServe does not answer"


def test_a_models_problem_is_that_of_its_versions():
    second = ModelCondition("good", "2.0", LOADING, problem="0 of 1 workers ready")
    condition = Condition(True, models=(GOOD, second))
    assert condition.problem("good") == "0 of 1 workers ready"
    assert condition.problem("good", "1.0") is None
    assert condition.problem("good", "3.0") == "not loaded by TorchServe"
    assert list(condition.problems) == ["model good 2.0"]


def test_what_workers_print_is_not_told_to_everybody():
    told = Condition(True, models=(GOOD, LOST)).public()
    assert "a line" not in str(told)
    assert told["problems"] == [{"what": "model lost", "why": "it died"}]
    assert told["models"][0]["workers"] == {"ready": 1, "expected": 1}


def test_a_supervisor_that_says_nothing_any_more_is_not_believed(tmp_path):
    path, now = tmp_path / "condition.json", [time.time()]
    watch = Watch(path, lambda: now[0])
    assert not watch.condition().live
    said = Condition(True, models=(GOOD, LOST), parts={"a": "b"})
    said.write(path)
    assert watch.condition() == said
    now[0] += 60
    assert not watch.condition().live
    assert "has not said anything for 6" in watch.condition().problems["supervisor"]


def test_a_process_that_ended_and_was_not_waited_for_is_not_alive():
    assert alive(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()
    assert not alive(process.pid)


# A model's workers


class Model:
    """A version whose workers and answers are what the test says."""

    def __init__(self, monkeypatch, **limits):
        self.now, self.living, self.outcome, self.asked = 0.0, set(), Outcome(True, "answered"), 0
        monkeypatch.setattr(version_watch, "alive", lambda pid: pid in self.living)
        self.watch = VersionWatch(ARCHIVE, Limits(**limits), self._answer)

    def _answer(self):
        self.asked += 1
        return self.outcome

    def step(self, *workers, minimum=1, seconds=1.0):
        """Let time pass; `workers` are (status, pid). Return the condition."""
        self.now += seconds
        described = [
            {"id": str(9000 + n), "status": status, "pid": pid}
            for n, (status, pid) in enumerate(workers)
        ]
        self.watch.described({"minWorkers": minimum, "workers": described}, self.now)
        return self.look()

    def look(self):
        for _ in range(2):
            self.watch.look(self.now)
            if self.watch._thread is not None:
                self.watch._thread.join(10)
        return self.watch.condition()


@pytest.fixture
def model(monkeypatch):
    return Model(monkeypatch)


def test_a_model_is_ready_once_a_living_worker_has_answered(model):
    assert model.step(("UNLOADING", -1)).state == LOADING
    model.living = {10}
    model.outcome = Outcome(None, "busy")
    assert model.step(("READY", 10)).problem == "busy"
    model.outcome = Outcome(True, "answered")
    model.step(("READY", 10), seconds=3)
    found = model.look()
    assert (found.state, found.problem, found.inference) == (READY, None, "answered")


def test_a_worker_that_was_killed_is_seen_although_describe_still_says_ready(model):
    model.living = {10}
    assert model.step(("READY", 10)).state == READY
    assert model.watch.stable
    model.living = set()
    assert not model.watch.stable
    found = model.look()
    assert (found.state, found.problem) == (RECOVERING, "0 of 1 workers ready")
    model.living = {11}
    assert model.step(("READY", 11)).state == READY
    assert model.asked == 2


def test_one_of_two_workers_is_degraded_but_at_the_start_both_are_waited_for(model):
    model.living = {10}
    both = (("READY", 10), ("UNLOADING", -1))
    assert model.step(*both, minimum=2).state == LOADING
    model.living = {10, 11}
    assert model.step(("READY", 10), ("READY", 11), minimum=2).problem is None
    model.living = {10}
    found = model.step(*both, minimum=2)
    assert (found.state, found.problem, found.workers) == (READY, "1 of 2 workers ready", 1)


def test_the_model_is_asked_again_rarely(model):
    model.living = {10}
    for _ in range(100):
        model.step(("READY", 10))
    assert model.asked == 1
    model.step(("READY", 10), seconds=300)
    assert model.asked == 2


def test_one_failed_sample_request_may_be_chance_two_are_not(model):
    model.living = {10}
    model.step(("READY", 10))
    model.outcome = Outcome(False, "answered 500")
    assert model.step(("READY", 10), seconds=300).state == READY
    found = model.step(("READY", 10), seconds=3)
    assert (found.state, found.problem) == (RECOVERING, "answered 500")
    model.outcome = Outcome(True, "answered")
    assert model.step(("READY", 10), seconds=3).state == READY


def test_a_worker_that_dies_again_and_again_is_given_up(model):
    for pid in (10, 11):
        model.living = {pid}
        assert model.step(("UNLOADING", pid)).state == LOADING
        model.living = set()
        found = model.step(("UNLOADING", pid))
    assert (found.state, found.problem) == (FAILED, "its worker died 2 times while loading it")
    # Somebody has started it again by hand.
    model.living = {12}
    assert model.step(("READY", 12)).state == READY


def test_after_it_has_answered_more_deaths_are_forgiven_and_every_success_counts_anew(model):
    pid = 10
    for _ in range(3):
        model.living = {pid}
        assert model.step(("READY", pid)).state == READY
        for _ in range(5):
            model.living = set()
            assert model.step(("UNLOADING", pid)).state == RECOVERING
            pid += 1
    model.step(("UNLOADING", pid))
    assert model.watch.failure == "its worker died 6 times while loading it"


def test_a_model_that_hangs_or_never_answers_is_given_up(monkeypatch):
    hanging = Model(monkeypatch, startup_seconds=20)
    hanging.living = {10}
    hanging.step(("UNLOADING", 10))
    assert hanging.step(("UNLOADING", 10), seconds=19).state == LOADING
    assert hanging.step(("UNLOADING", 10), seconds=2).problem == "not ready within 20 seconds"
    refusing = Model(monkeypatch)
    refusing.living, refusing.outcome = {10}, Outcome(False, "answered 500")
    for _ in range(3):
        found = refusing.step(("READY", 10), seconds=3)
    assert (found.state, found.problem) == (FAILED, "answered 500")


def test_a_model_whose_sample_request_ends_its_worker_each_time_is_given_up(model):
    model.outcome = Outcome(None, "Worker died")
    for pid in range(10, 36):
        model.living = {pid}
        assert model.step(("READY", pid), seconds=12).state == LOADING
    model.living = {36}
    for _ in range(2):  # it is described until TorchServe has ended it
        found = model.step(("READY", 36), seconds=12)
    assert (found.state, found.problem) == (FAILED, "Worker died")


def test_a_second_worker_that_cannot_load_does_not_keep_the_first_from_serving(model):
    model.living = {10}
    for pid in (11, 12, 13):
        found = model.step(("READY", 10), ("UNLOADING", pid), minimum=2)
    assert (found.state, found.problem) == (READY, "1 of 2 workers ready")


# All models


class TorchServe:
    """A management API that can be gone, and counts."""

    def __init__(self, monkeypatch):
        self.workers, self.gone, self.described, self.scaled = {}, False, [], []
        monkeypatch.setattr(monitor, "descriptions", self._describe)
        monkeypatch.setattr(monitor, "scale_to_zero", self._scale)
        for module in (monitor, version_watch):
            monkeypatch.setattr(module, "alive", lambda pid: pid < 100)

    def _describe(self, url, name, timeout):
        self.described.append(name)
        if self.gone:
            raise NotListening("gone")
        if name not in self.workers:
            return None
        status, pid = self.workers[name]
        worker = {"id": "9000", "status": status, "pid": pid}
        return [{"modelVersion": "1.0", "minWorkers": 1, "workers": [worker]}]

    def _scale(self, url, name, version):
        self.scaled.append((name, version))


@pytest.fixture
def torchserve(monkeypatch):
    return TorchServe(monkeypatch)


def watched(names, said):
    now = [0.0]
    lines = WorkerLines()
    lines.note("12:00:00 [W-9001-bad_1.0-stderr] RuntimeError: no such weights")
    found = Monitor(
        "http://x",
        [Archive(Path(f"{name}.mar"), name, "1.0") for name in names],
        check=lambda archive: Outcome(True, "answered"),
        lines=lines,
        limits=Limits(),
        say=said.append,
        clock=lambda: now[0],
    )

    def look(seconds=1.0):
        now[0] += seconds
        for _ in range(2):
            condition = found.look(draining=False, parts={})
            for version in found._versions:
                if version._thread is not None:
                    version._thread.join(10)
        return condition

    return look


def test_a_bad_model_is_given_up_once_and_the_other_serves(torchserve):
    said = []
    look = watched(["good", "bad"], said)
    torchserve.workers = {"good": ("READY", 10), "bad": ("UNLOADING", 101)}
    look()
    torchserve.workers["bad"] = ("UNLOADING", 102)
    for _ in range(3):
        condition = look()
    assert (condition.status, condition.ready) == ("degraded", True)
    assert condition.models[1].lines == ("RuntimeError: no such weights",)
    assert torchserve.scaled == [("bad", "1.0")]
    [line] = said
    assert "'bad' (bad.mar)" in line
    assert "no such weights" in line


def test_a_model_that_torchserve_does_not_know_is_given_up(torchserve):
    look = watched(["good", "unknown"], [])
    torchserve.workers = {"good": ("READY", 10)}
    look()
    assert look().problems == {"model unknown": "TorchServe could not take it in"}


def test_models_that_are_well_are_described_in_turn(torchserve):
    look = watched(["a", "b"], [])
    torchserve.workers = {"a": ("READY", 10), "b": ("READY", 11)}
    assert look().ready
    torchserve.described.clear()
    for _ in range(8):
        assert look(seconds=1.0).ready
    assert torchserve.described == ["a", "b", "a", "b"]


def test_where_torchserve_hangs_it_is_asked_for_one_model_only(torchserve):
    look = watched(["a", "b"], [])
    torchserve.workers = {"a": ("READY", 10), "b": ("READY", 11)}
    look()
    torchserve.gone = True
    torchserve.described.clear()
    assert not look(seconds=3).live
    assert torchserve.described == ["a", "a"]
    torchserve.gone = False
    assert look().ready


def test_the_last_lines_of_each_worker_are_remembered():
    lines = WorkerLines()
    for n in range(30):
        lines.note(f"12:00:00 [W-9000-my_model_1.0-stdout] line {n}")
    for text in ("other", "Backend worker process died.", "Traceback", "RuntimeError: 500"):
        lines.note(f"12:00:00 [W-9001-my_model_2.0-stderr] {text}")
    lines.note("12:00:00 WARN  [main] nothing of a worker's")
    kept = lines.last("my_model", "1.0")
    assert (len(kept), kept[-1]) == (20, "line 29")
    assert lines.last("my_model", "2.0") == ("other",)
    assert lines.last("none", "1.0") == ()


# Processes


class Child:
    def __init__(self, status=None):
        self.status, self.stopped = status, threading.Event()

    def poll(self):
        return self.status

    def stop(self, seconds, ask=None):
        self.stopped.set()
        return 0


def test_a_service_that_dies_is_started_again_later_and_later_and_not_without_end():
    now, said, made = [0.0], [], []

    def again():
        made.append(now[0])
        return Child(status=-9)

    processes = Processes(said.append, lambda: now[0])
    processes.add("The status service", Child(status=1), 1.0, again=again)

    def wait():
        while now[0] < 1000:
            processes.check()
            now[0] += 0.1

    with pytest.raises(ServingError, match=r"The status service ended .* \(signal SIGKILL\)"):
        wait()
    pauses = [after - before for before, after in zip([0.0, *made], made, strict=False)]
    assert len(made) == 7
    assert pauses == sorted(pauses)
    assert said[0].startswith("The status service ended without having been asked to (exit code 1)")


def test_a_service_that_has_run_is_tried_for_ever():
    now = [0.0]
    made = []

    def again():
        made.append(now[0])
        # Twenty deaths at once, then it runs for a while, and dies.
        return Child(status=-9 if len(made) <= 20 else None)

    processes = Processes(lambda line: None, lambda: now[0])
    child = Child(status=None)
    processes.add("The status service", child, 1.0, again=again)
    processes.check()
    now[0] = 11.0
    child.status = -9
    while now[0] < 1000:
        processes.check()
        now[0] += 0.1
    assert len(made) == 21
    assert made[0] < 11.5
    pauses = [after - before for before, after in itertools.pairwise(made)]
    assert max(pauses) < 31


def test_a_service_that_is_about_to_be_started_again_is_a_problem():
    now = [0.0]
    processes = Processes(lambda line: None, lambda: now[0])
    processes.add("The gRPC service", Child(status=-9), 1.0, again=Child)
    processes.check()
    assert list(processes.problems) == ["The gRPC service"]
    now[0] = 1.0
    processes.check()
    assert processes.problems == {}
    with suppress(ServingError):
        processes.check()
    assert processes.problems == {}


def test_a_process_that_may_not_be_started_again_ends_the_run():
    processes = Processes(lambda line: None)
    processes.add("TorchServe", Child(status=3), 1.0)
    with pytest.raises(ServingError, match=r"TorchServe ended .* \(exit code 3\)"):
        processes.check()
