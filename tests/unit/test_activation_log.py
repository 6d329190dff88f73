import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from formats.activation import ActivationRecord, Activations
from formats.statistics import LayerRecord, LayerStatistics
from handlers import jsontext, log_process, log_writer
from handlers.activation_log import ActivationLog
from handlers.log_settings import LogSettings
from handlers.log_writer import COUNTERS, LogFile, Writer
from tests.conftest import ROOT

DEADLINE = 30
WHOLE = LayerStatistics(6, 0.5, 0.25, 0.0, 1.0, 0.5, 0)
BROKEN = LayerStatistics(6, math.nan, None, -math.inf, math.inf, 0.0, 2)
LAYERS = {
    "relu": LayerRecord(WHOLE, (WHOLE, WHOLE)),
    "relu@1": LayerRecord(BROKEN),
    "lstm:hidden": LayerRecord(LayerStatistics(0, None, None, None, None, None, 0)),
}
SCHEMA = json.loads((ROOT / "docs" / "activation-record.schema.json").read_text())


def now():
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def record(number=0, size=0, **changes):
    plain = ActivationRecord(
        time=now(),
        model="m",
        model_version="1.0",
        request_id=str(number),
        traceparent=None,
        correlation_id="x" * size,
        reason="asked",
        rows=2,
        activations=Activations(LAYERS, "relu@1", ("relu",)),
    )
    return replace(plain, **changes)


def until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def settings(folder, **changes):
    return LogSettings(mode="asked", folder=folder, **changes)


def lines(path):
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def ids(*paths):
    return [int(line["request_id"]) for path in paths for line in lines(path)]


def descriptors():
    return set(os.listdir("/proc/self/fd"))


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def log(tmp_path):
    with ActivationLog(settings(tmp_path / "logs"), "m") as log:
        yield log
        if log.writer_pid is not None:
            os.kill(log.writer_pid, signal.SIGCONT)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "logs" / "m.jsonl"


# The record and the file


def test_records_arrive_as_lines_that_the_schema_allows(log, file):
    validator = Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    client = 'tab\t, newline\n, "quotes", \u2028, \x00 and ünïcode'
    sent = [
        record(1),
        record(2, traceparent=client, correlation_id=client),
        record(3, reason="error", rows=0, activations=None, error="wrong_shape"),
    ]
    for one in sent:
        log.write(one)
    log.close()
    written = lines(file)
    assert written == [jsontext.loads(jsontext.dumps(one.to_json())) for one in sent]
    assert written[1]["traceparent"] == client
    assert written[0]["layers"]["relu@1"]["max"] is None
    for line in written:
        validator.validate(line)
    counts = log.counts()
    assert (counts.sent, counts.written, counts.total_dropped) == (3, 3, 0)
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "change",
    [
        {"body": [1, 2]},
        {"version": 2},
        {"time": "2026-01-31 12:00:00"},
        {"reason": "because"},
        {"layers": {"relu": WHOLE.to_json() | {"median": 0}}},
        {"layers": {"relu": WHOLE.to_json() | {"rows": [WHOLE.to_json(), {"elements": 1}]}}},
        {"flags": {"non_finite": None, "dead": None}},
        {"error": "internal"},
    ],
)
def test_the_schema_is_strict(change):
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate(record().to_json() | change)


def test_text_without_utf8_does_not_lose_the_record(log, file):
    log.write(record(1, correlation_id="\ud800!"))
    log.close()
    assert lines(file)[0]["correlation_id"] == "?!"


def test_what_cannot_be_written_as_json_is_dropped_and_counted(log):
    log.write(record(rows=object()))
    assert log.counts().dropped["unserialisable"] == 1


def test_a_model_name_leads_to_a_file_in_the_folder(tmp_path):
    with ActivationLog(settings(tmp_path), "../a.1/ü") as log:
        log.write(record(1))
    assert [path.name for path in tmp_path.iterdir()] == ["___a_1__.jsonl"]


# The worker


WORKER = """
import os, signal, sys
from pathlib import Path
from formats.activation import ActivationRecord
from handlers.activation_log import ActivationLog
from handlers.log_settings import LogSettings
log = ActivationLog(LogSettings("asked", folder=Path(sys.argv[1])), "m")
for number in range(200):
    log.write(ActivationRecord("2026", "m", "1", str(number), None, "x" * 9000, "asked", 1, None))
    if log.counts().total_dropped:
        sys.exit(3)
print(log.writer_pid, flush=True)
os.killpg(0, int(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_lost_or_halved_when_the_worker_is_killed(tmp_path, file, number):
    # Small enough for any machine's channel: all may still be in there when the worker dies.
    program = WORKER.replace("range(200)", "range(20)")
    command = [sys.executable, "-c", program, str(file.parent), str(int(number))]
    worker = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True, check=False
    )
    assert worker.returncode == -number
    # The pipe reached its end: the writer does not hold the worker's output open.
    writer = int(worker.stdout)
    until(lambda: not is_running(writer))
    assert ids(file) == list(range(20))


def test_a_full_channel_drops_and_goes_on(log, file):
    os.kill(log.writer_pid, signal.SIGSTOP)
    number = 0
    while log.counts().dropped["channel_full"] < 3:
        log.write(record(number, size=30_000))
        number += 1
    sent = log.counts().sent
    assert sent == number - 3
    os.kill(log.writer_pid, signal.SIGCONT)
    until(lambda: log.counts().written == sent)
    log.write(record(number))
    log.close()
    assert ids(file) == [*range(sent), number]


def test_a_record_larger_than_the_channel_is_dropped(log, file):
    log.write(record(1, size=log.capacity))
    log.write(record(2, size=log.capacity // 3))
    log.write(record(3))
    log.close()
    assert ids(file) == [2, 3]
    assert log.counts().dropped["too_large"] == 1


def test_off_starts_nothing(tmp_path):
    before = descriptors()
    threads = threading.active_count()
    with ActivationLog(LogSettings(folder=tmp_path), "m") as log:
        log.write(record())
        assert log.writer_pid is None
        assert (descriptors(), threading.active_count()) == (before, threads)
    assert log.counts().sent == log.counts().written == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", [False, True])
def test_closing_leaves_nothing_behind(tmp_path, fails):
    before = descriptors()
    threads = threading.active_count()
    with suppress(RuntimeError), ActivationLog(settings(tmp_path), "m") as log:
        log.write(record(1))
        writer = log.writer_pid
        assert writer is not None
        if fails:
            raise RuntimeError
    assert not is_running(writer)
    assert (descriptors(), threading.active_count()) == (before, threads)
    with pytest.raises(ChildProcessError):
        os.waitpid(writer, os.WNOHANG)
    log.close()
    log.write(record(2))
    assert log.counts().dropped["closed"] == 1
    assert ids(tmp_path / "m.jsonl") == [1]


def test_a_writer_that_does_not_end_is_killed_and_its_records_counted(tmp_path):
    before = descriptors()
    log = ActivationLog(settings(tmp_path), "m")
    writer = log.writer_pid
    os.kill(writer, signal.SIGSTOP)
    log.write(record(1))
    log.close(seconds=0.1)
    assert not is_running(writer)
    assert descriptors() == before
    assert log.counts().dropped["writer_dead"] == 1


def test_a_writer_that_cannot_be_started_leaves_nothing_behind(tmp_path, monkeypatch):
    before = descriptors()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError):
        ActivationLog(settings(tmp_path), "m")
    assert descriptors() == before


# The writer's process


def test_a_killed_writer_is_started_again_and_finds_what_is_left(log, file, capfd):
    log.write(record(0))
    until(lambda: log.counts().written == 1)
    first = log.writer_pid
    os.kill(first, signal.SIGSTOP)
    for number in (1, 2, 3):
        log.write(record(number))
    os.kill(first, signal.SIGKILL)
    until(lambda: log.counts().written == 4)
    assert log.writer_pid != first
    assert ids(file) == [0, 1, 2, 3]
    assert capfd.readouterr().err.startswith(f"vitrine: the writer of {file} ended with")


def test_a_dead_writer_is_named_when_the_channel_is_full(log, monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    os.kill(log.writer_pid, signal.SIGKILL)
    until(lambda: log.writer_pid is None)
    while log.counts().dropped["writer_dead"] == 0:
        log.write(record(size=30_000))
    sent = log.counts().sent
    until(lambda: "cannot be started" in capfd.readouterr().err)
    monkeypatch.undo()
    until(lambda: log.counts().written == sent)


def test_closing_lets_a_last_writer_take_what_a_killed_one_left(log, file, monkeypatch, capfd):
    monkeypatch.setattr(log_process, "_FIRST_DELAY_SECONDS", DEADLINE)
    first = log.writer_pid
    os.kill(first, signal.SIGSTOP)
    log.write(record(1))
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_running(first))
    log.close()
    assert ids(file) == [1]
    assert log.counts().total_dropped == 0


def test_the_writer_starts_again_when_the_archives_folder_is_gone(tmp_path, monkeypatch, capfd):
    program = tmp_path / "log_writer.py"
    shutil.copy(log_writer.__file__, program)
    monkeypatch.setattr(log_writer, "__file__", str(program))
    with ActivationLog(settings(tmp_path), "m") as log:
        program.unlink()
        os.kill(log.writer_pid, signal.SIGKILL)
        log.write(record(1))
        until(lambda: log.counts().written == 1)


def test_signals_do_not_end_the_writer_before_its_work_is_done(log):
    log.write(record(1))
    until(lambda: log.counts().written == 1)
    writer = log.writer_pid
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(writer, number)
    log.write(record(2))
    until(lambda: log.counts().written == 2)
    assert log.writer_pid == writer
    assert os.getsid(writer) == writer


class PlainChannel:
    """A socket on a system that has no SO_PEEK_OFF."""

    def __init__(self, channel):
        self._channel = channel

    def setsockopt(self, *_):
        raise OSError

    def __getattr__(self, name):
        return getattr(self._channel, name)


@pytest.mark.parametrize("wrap", [lambda channel: channel, PlainChannel])
def test_the_writer_needs_no_looking_ahead(tmp_path, wrap):
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    counters = [0] * len(COUNTERS)
    with sender, receiver:
        for number in range(5):
            sender.send(b"%d\n" % number)
        sender.close()
        file = LogFile(str(tmp_path / "f"), 1000, 1000, 1)
        Writer(wrap(receiver), file, counters, 100).run()
        file.close()
    assert (tmp_path / "f").read_text() == "0\n1\n2\n3\n4\n"
    assert counters == [5, 0, 0, 0, 0]


# The disk


def test_a_full_disk_leaves_whole_lines_and_is_survived(log, file):
    log.write(record(0))
    until(lambda: log.counts().written == 1)
    # The file may grow by one line and a half: to the writer, that is a full disk.
    limit = file.stat().st_size * 5 // 2
    _, hard = resource.prlimit(log.writer_pid, resource.RLIMIT_FSIZE)
    resource.prlimit(log.writer_pid, resource.RLIMIT_FSIZE, (limit, hard))
    for number in range(1, 6):
        log.write(record(number))
    until(lambda: log.counts().written + log.counts().total_dropped == 6)
    assert ids(file) == [0, 1]
    assert log.counts().dropped["disk_full"] == 4
    resource.prlimit(log.writer_pid, resource.RLIMIT_FSIZE, (hard, hard))
    until(lambda: log.write(record(7)) or log.counts().written > 2)
    log.close()
    assert set(ids(file)) == {0, 1, 7}


@pytest.mark.parametrize("reason", ["folder_missing", "io_error"])
def test_a_folder_that_cannot_be_is_survived(tmp_path, reason):
    # Below a regular file there are no folders, for root neither; a folder is no file to open.
    blocked = tmp_path / "blocked"
    if reason == "folder_missing":
        blocked.touch()
    else:
        (blocked / "m.jsonl").mkdir(parents=True)
    with ActivationLog(settings(blocked), "m") as log:
        log.write(record(1))
        until(lambda: log.counts().dropped[reason] == 1)
        shutil.rmtree(blocked) if blocked.is_dir() else blocked.unlink()
        until(lambda: log.write(record(2)) or log.counts().written > 0)
    assert set(ids(blocked / "m.jsonl")) == {2}


def test_a_folder_that_cannot_be_written_is_survived():
    # The kernel takes no files in /sys, from root neither.
    with ActivationLog(settings(Path("/sys")), "m") as log:
        log.write(record(1))
        until(lambda: log.counts().dropped["read_only"] == 1)


@pytest.mark.parametrize("error", ["EROFS", "EACCES"])
def test_a_read_only_file_system_is_named(monkeypatch, error):
    def refuse(*_):
        raise OSError(getattr(log_writer.errno, error), error)

    monkeypatch.setattr(os, "open", refuse)
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    counters = [0] * len(COUNTERS)
    with sender, receiver:
        sender.send(b"1\n")
        sender.close()
        Writer(receiver, LogFile("/f", 1000, 1000, 1), counters, 100).run()
    assert counters[COUNTERS.index("read_only")] == 1


def test_a_deleted_folder_and_a_renamed_file_are_made_anew(log, file):
    log.write(record(1))
    until(lambda: log.counts().written == 1)
    shutil.rmtree(file.parent)
    log.write(record(2))
    until(lambda: log.counts().written == 2)
    assert ids(file) == [2]
    moved = file.rename(file.with_name("moved"))
    log.write(record(3))
    log.close()
    assert ids(moved, file) == [2, 3]


def test_a_half_line_of_a_killed_writer_is_cut_off(log, file):
    file.parent.mkdir(exist_ok=True)
    half = b'{"request_id":"' + b"x" * 10_000
    file.write_bytes(b'{"request_id":"1"}\n' + half)
    log.write(record(2))
    until(lambda: log.counts().written == 1)
    assert ids(file) == [1, 2]
    with file.open("ab") as other:
        other.write(half)
    log.write(record(3))
    log.close()
    assert ids(file) == [1, 2, 3]


# Rotation


def test_two_workers_rotate_one_file_without_losing_a_line(tmp_path):
    limits = settings(tmp_path, max_bytes=20_000, keep=1000)
    with ActivationLog(limits, "m") as one, ActivationLog(limits, "m") as two:
        for number in range(600):
            for log, own in ((one, number), (two, 10_000 + number)):
                until(lambda log=log: log.counts().sent - log.counts().written < 50)
                log.write(record(own))
    paths = list(tmp_path.iterdir())
    assert len(paths) > 10
    assert all(path.stat().st_size <= 20_000 for path in paths)
    assert sorted(ids(*paths)) == [*range(600), *range(10_000, 10_600)]
    for log in (one, two):
        assert (log.counts().written, log.counts().total_dropped) == (600, 0)
    # In each file, and from the oldest to the newest, a worker's lines are in order.
    oldest_first = [tmp_path / f"m.{place}.jsonl" for place in range(len(paths) - 1, 0, -1)]
    found = ids(*oldest_first, tmp_path / "m.jsonl")
    assert [number for number in found if number < 10_000] == list(range(600))


def append(file, *texts):
    data = b"".join(texts)
    ends = [sum(map(len, texts[: place + 1])) for place in range(len(texts))]
    return file.append(memoryview(data), ends)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (0, {"f.jsonl": "5\n"}),
        (1, {"f.jsonl": "5\n", "f.1.jsonl": "4\n"}),
        (3, {"f.jsonl": "5\n", "f.1.jsonl": "4\n", "f.2.jsonl": "3\n", "f.3.jsonl": "2\n"}),
    ],
)
def test_so_many_old_files_are_kept(tmp_path, keep, kept):
    path = str(tmp_path / "f.jsonl")
    many = LogFile(path, 2, 1000, 9)
    assert append(many, b"0\n", b"1\n") == 1
    for number in (1, 2, 3, 4):
        append(many, b"%d\n" % number)
    many.close()
    few = LogFile(path, 2, 1000, keep)
    append(few, b"5\n")
    few.close()
    assert contents(tmp_path) == kept


def test_a_line_longer_than_a_file_may_be_has_one_for_itself(tmp_path):
    file = LogFile(str(tmp_path / "f.jsonl"), 10, 1000, 9)
    append(file, b"short\n")
    append(file, b"longer than ten\n")
    append(file, b"short\n")
    file.close()
    assert sorted(contents(tmp_path).values()) == ["longer than ten\n", "short\n", "short\n"]


@pytest.mark.parametrize("old", ['{"time":"2020-01-31T12:00:00.123Z"}\n', "no time\n"])
def test_a_file_is_put_aside_when_its_first_line_is_old(tmp_path, old):
    path = tmp_path / "f.jsonl"
    path.write_text(old)
    os.utime(path, (0, 0))
    file = LogFile(str(path), 1000, 3600, 5)
    append(file, b'{"time":"%s"}\n' % now().encode())
    append(file, b"second\n")
    file.close()
    another = LogFile(str(path), 1000, 3600, 5)
    append(another, b"third\n")
    another.close()
    assert (tmp_path / "f.1.jsonl").read_text() == old
    assert path.read_text().endswith("second\nthird\n")
    assert len(list(tmp_path.iterdir())) == 2


# The settings


def test_the_environment_wins_over_the_archive(tmp_path):
    assert LogSettings.from_config(None, {}) == LogSettings() == LogSettings.from_config({}, {})
    assert LogSettings.from_config({"mode": False}, {}).mode == "off"
    section = {
        "mode": "asked",
        "rate": 0.5,
        "folder": str(tmp_path),
        "max_bytes": "2MiB",
        "max_age_seconds": 60,
        "keep": 0,
    }
    read = LogSettings("asked", 0.5, tmp_path, 2 << 20, 60.0, 0)
    assert LogSettings.from_config(section, {"VITRINE_ACTIVATION_LOG": ""}) == read
    environ = {
        "VITRINE_ACTIVATION_LOG": "sampled",
        "VITRINE_ACTIVATION_LOG_RATE": "1",
        "VITRINE_ACTIVATION_LOG_DIR": "/elsewhere",
        "VITRINE_ACTIVATION_LOG_MAX_BYTES": "5",
        "VITRINE_ACTIVATION_LOG_MAX_AGE": "1.5",
        "VITRINE_ACTIVATION_LOG_KEEP": "7",
    }
    expected = LogSettings("sampled", 1.0, Path("/elsewhere"), 5, 1.5, 7)
    assert LogSettings.from_config(section, environ) == expected


@pytest.mark.parametrize(
    ("section", "environ", "words"),
    [
        ("off", {}, "activation_log is 'off'; expected settings by name"),
        ({"mod": "off"}, {}, "activation_log.mod is not a setting; expected mode, rate"),
        ({"mode": True}, {}, "activation_log.mode is True; expected off, asked or sampled"),
        ({"mode": []}, {}, r"activation_log.mode is \[\]; expected off"),
        ({"rate": 1.5}, {}, "activation_log.rate is 1.5; expected a number from 0 to 1"),
        ({"rate": True}, {}, "activation_log.rate is True"),
        ({"rate": math.nan}, {}, "activation_log.rate is nan"),
        ({"folder": "logs"}, {}, "activation_log.folder is 'logs'; expected an absolute path"),
        ({"folder": 5}, {}, "activation_log.folder is 5"),
        ({"max_bytes": "64MB"}, {}, "max_bytes is '64MB'; .* KiB, MiB or GiB"),
        ({"max_bytes": 0}, {}, "max_bytes is 0"),
        ({"max_age_seconds": math.inf}, {}, "max_age_seconds is inf; expected seconds"),
        ({"keep": -1}, {}, "keep is -1; expected a whole number, 0 or more"),
        ({"keep": 1.5}, {}, "keep is 1.5"),
        ({}, {"VITRINE_ACTIVATION_LOG": "yes"}, "VITRINE_ACTIVATION_LOG is 'yes'"),
        ({}, {"VITRINE_ACTIVATION_LOG_KEEP": "x"}, "VITRINE_ACTIVATION_LOG_KEEP is 'x'"),
        ({"mode": "asked"}, {}, "folder is not set; .* VITRINE_ACTIVATION_LOG_DIR"),
    ],
)
def test_a_wrong_setting_is_named(section, environ, words):
    with pytest.raises(ValueError, match=words):
        LogSettings.from_config(section, environ)


@pytest.mark.parametrize(
    ("mode", "draw", "facts", "reason"),
    [
        ("off", 0.0, {"asked": True, "error": True}, None),
        ("asked", 0.0, {"asked": False, "error": True, "non_finite": True}, None),
        ("asked", 0.9, {"asked": True}, "asked"),
        ("sampled", 0.09, {"asked": False}, "sampled"),
        ("sampled", 0.1, {"asked": False}, None),
        ("sampled", 0.0, {"asked": True, "error": True}, "asked"),
        ("sampled", 0.9, {"asked": False, "error": True}, "error"),
        ("sampled", 0.0, {"asked": False, "non_finite": True}, "non_finite"),
    ],
)
def test_requests_are_picked_for_a_reason(mode, draw, facts, reason):
    assert LogSettings(mode, rate=0.1).reason(draw, **facts) == reason
