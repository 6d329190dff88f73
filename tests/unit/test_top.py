"""`observe top`: what the terminal shows equals what the log says, at every size."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path

import pandas
import pytest
from rich.cells import cell_len
from rich.console import Console

from formats.document import FormatError
from observe import __main__ as command
from observe.baselines import Baselines
from observe.index import Index
from observe.queries import Window
from observe.reader import Reader
from observe.request_rate import RequestRate, requests_by_model
from observe.room import Lines, allot
from observe.row_averages import RowAverage, row_averages, trends
from observe.screen import Screen
from observe.snapshot import take
from observe.terminal import ago, blocks, printable, shortened, squeezed
from tests import activation_logs as logs
from tests.conftest import ROOT

ESCAPE = "\x1b"


def opened(path):
    index = Index()
    Reader(path, index).read_all()
    return index


def frame(path):
    """Return the log's values of single rows, by pandas."""
    found = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        for key, layer in record.get("layers", {}).items():
            for row in layer.get("rows") or [layer]:
                found.append({"time": record["time"], "key": key, **row})
    return pandas.DataFrame(found)


def once(capsys, monkeypatch, *arguments, width=160):
    monkeypatch.setenv("COLUMNS", str(width))
    status = command.main(["top", *map(str, arguments)])
    return status, capsys.readouterr().out


@pytest.fixture(autouse=True)
def no_store(tmp_path, monkeypatch):
    """The archives of whoever runs the tests are not compared with."""
    monkeypatch.setattr("observe.options._STORE", tmp_path / "no store")


@pytest.fixture
def baseline_file(tmp_path):
    folder = tmp_path / "baseline"
    folder.mkdir()
    logs.baseline().write(folder)
    return folder / "baseline.json"


def test_the_table_equals_the_log(tmp_path, capsys, monkeypatch, baseline_file):
    log = logs.write(
        tmp_path / "digits.jsonl",
        logs.records(
            900,
            rows=3,
            faults=[
                logs.Fault("shifted", "block.0.relu", 300),
                logs.Fault("dead", "block.1.relu", 800, 815),
                logs.Fault("nan", "block.2.relu", 850, 853),
            ],
            errors=[899],
        ),
    )
    status, out = once(capsys, monkeypatch, log, "--baseline", f"digits={baseline_file}")
    assert status == 0
    rows = frame(log)
    rows = rows[rows["time"] > logs.rfc3339(logs.START + 899 * 100 - 60_000)]
    known = logs.baseline().layers
    for key, own in rows.groupby("key"):
        line = next(line for line in out.splitlines() if line.startswith(f"{key} "))
        cells = line.split()
        assert cells[1] == shortened(own["mean"].mean())
        away = (own["mean"].mean() - known[key]["mean"].mean) / known[key]["mean"].spread
        assert float(re.match(r"[+−]?[\d.]+", cells[2])[0].replace("−", "-")) == pytest.approx(
            away, abs=0.051
        )
        assert cells[3] == shortened(own["std"].mean())
        assert f"{own['zero_fraction'].mean():.1%}" in cells
        assert str(own["non_finite"].sum()) in cells
    shifted = next(line for line in out.splitlines() if line.startswith("block.0.relu "))
    assert re.search(r"\+2\.\d\*", shifted)  # Told without colour.
    dead = next(line for line in out.splitlines() if line.startswith("block.1.relu "))
    assert "15" in dead.split()
    assert "first NaN or infinity in block.2.relu" in out
    assert "error invalid_input" in out
    assert "drift: ALARM in 1 of 5 layers; farthest: block.0.relu (mean " in out


def test_a_log_that_is_no_longer_written_shows_how_it_ended(tmp_path, capsys, monkeypatch):
    start = time.time_ns() // 1_000_000 - 3 * 86_400_000
    log = logs.write(tmp_path / "digits.jsonl", logs.records(50, start=start, step=1000))
    status, out = once(capsys, monkeypatch, log, "--window", 10, "--once")
    assert status == 0
    assert "the last record is 2 days old: shown are the 10 s before it" in out
    assert "10 records" in out
    assert "no baseline to compare with" in out


def test_a_log_that_is_written_shows_the_last_seconds_until_now(tmp_path, capsys, monkeypatch):
    start = time.time_ns() // 1_000_000 - 100_000
    log = logs.write(tmp_path / "digits.jsonl", logs.records(101, start=start, step=1000))
    status, out = once(capsys, monkeypatch, log, "--window", 1000)
    assert status == 0
    assert "last 16.67 min: 101 records" in out
    rate = float(re.search(r"([\d.]+) records/s logged", out)[1])
    assert 0.5 < rate <= 101 / 100  # Since the first record, not over the whole window.


def test_of_several_models_the_one_with_the_latest_record_is_shown(tmp_path, capsys, monkeypatch):
    for model, version, start in (("a", "1", 0), ("b", "1", 50_000), ("b", "2", 20_000)):
        made = logs.records(5, model=model, version=version, start=logs.START + start)
        logs.write(tmp_path / f"{model}.jsonl", made)
    _, out = once(capsys, monkeypatch, tmp_path)
    assert out.startswith("b 1 · ")
    assert "shown is what has the latest record; also in the log: a 1, b 2" in out
    _, out = once(capsys, monkeypatch, tmp_path, "--model", "a")
    assert out.startswith("a 1 · ")
    assert "shown is what" not in out
    assert "also in the log: b 1, b 2" in out
    _, out = once(capsys, monkeypatch, tmp_path, "--model", "b", "--version", "2")
    assert out.startswith("b 2 · ")
    monkeypatch.setenv("COLUMNS", "200")
    assert command.main(["top", str(tmp_path), "--model", "c", "--once"]) == 2
    assert "has nothing of c; it has: a 1, b 1, b 2" in capsys.readouterr().err


def test_no_log_and_an_empty_one(tmp_path, capsys, monkeypatch):
    assert command.main(["top", str(tmp_path / "missing.jsonl"), "--once"]) == 2
    assert "missing.jsonl is not there; expected an activation log" in capsys.readouterr().err
    folder = tmp_path / "empty"
    folder.mkdir()
    status, out = once(capsys, monkeypatch, folder, "--once")
    assert status == 0
    assert f"waiting for a first record in {folder}" in out


def test_lines_that_are_no_records_are_counted(tmp_path, capsys, monkeypatch):
    log = logs.write(tmp_path / "digits.jsonl", logs.records(20))
    with log.open("a") as file:
        file.write('garbage\n{}\n{"format": "vitrine.activation", "version": 1}\n[1]\n')
    _, out = once(capsys, monkeypatch, log)
    assert "20 records in all · skipped 4 lines" in out
    assert "1 not JSON" in out
    assert "1 damaged record" in out


@pytest.mark.parametrize("width", [60, 80, 160])
def test_what_a_log_says_does_not_move_the_cursor(tmp_path, capsys, monkeypatch, width):
    evil = f"{ESCAPE}[2J\x07[red]\u202e\r\nname"
    made = logs.records(30, layers=(evil, "head"), model=evil, errors=[3], faults=[
        logs.Fault("nan", evil, 10)])  # fmt: skip
    made = (replace(one, request_id=evil, error=one.error and evil) for one in made)
    log = logs.write(tmp_path / "evil.jsonl", made)
    _, out = once(capsys, monkeypatch, log, width=width)
    assert ESCAPE not in out
    assert not {"\x07", "\r", "\u202e"} & set(out)
    assert "[red]" in out  # Not taken for markup.


def test_one_record_and_nothing_finite(tmp_path, capsys, monkeypatch, baseline_file):
    log = logs.write(tmp_path / "digits.jsonl", logs.records(1))
    _, out = once(capsys, monkeypatch, log, "--baseline", f"digits={baseline_file}")
    assert "1 record " in out
    assert "drift: too few rows to tell" in out
    bad = logs.write(
        tmp_path / "bad.jsonl", logs.records(40, faults=[logs.Fault("nan", "stem")], model="bad")
    )
    _, out = once(capsys, monkeypatch, bad, "--baseline", f"bad={baseline_file}")
    line = next(line for line in out.splitlines() if line.startswith("stem"))
    assert "2560" in line
    assert "–" in line


@pytest.mark.parametrize("layers", [5, 300])
def test_it_fits_every_terminal(tmp_path, layers, baseline_file):
    names = logs.LAYERS if layers == 5 else tuple(f"层{n}.block.relu" for n in range(layers))
    log = logs.write(
        tmp_path / "digits.jsonl",
        logs.records(30, layers=names, faults=[logs.Fault("nan", names[-2], 5)], errors=[7]),
    )
    index = opened(log)
    snapshot = take(index, Baselines(named={"digits": logs.baseline()}), now=0, seconds=60)
    state = Reader(log, Index()).read_all()
    screen = Screen(
        snapshot,
        state,
        requests="12.0 requests/s",
        findings=[("fault", "a long sentence about a layer " * 5), ("warning", "short")],
        units={names[0]: "3/16"},
        drift="ALARM in 1 of 5 layers, farthest " + names[0] * 9,
        drifted=frozenset(names[:1]),
    )
    for width in (20, 40, 79, 80, 120, 200):
        for height in (None, 6, 8, 10, 15, 24, 50):
            console = Console(file=io.StringIO(), width=width, height=height or 25)
            console.print(screen.render(console, height))
            lines = console.file.getvalue().splitlines()
            assert max(map(cell_len, lines)) <= width
            assert names[-2][-8:] in "".join(lines)  # The strangest layer is always there.
            if height is not None:
                assert len(lines) <= height
            if height is not None and height < 15:
                assert any("no room for" in line for line in lines)
    index.close()


def test_eighty_columns_show_all_but_the_spreads_of_std(tmp_path, capsys, monkeypatch):
    log = logs.write(tmp_path / "digits.jsonl", logs.records(5))
    file = tmp_path / "baseline.json"
    logs.baseline().write(tmp_path)
    _, out = once(capsys, monkeypatch, log, "--baseline", f"digits={file}", width=80)
    assert "layer mean ± std ± zeros ± dead NaN trend" in " ".join(out.split())
    assert "no room for" not in out
    _, out = once(capsys, monkeypatch, log, "--baseline", f"digits={file}", width=60)
    assert "no room for: columns std±, zero_fraction±, trend" in out


def test_lines_are_cut_where_least_is_lost():
    wanted = Lines(head=3, layers=12, legend=1, told=6, rows=10)
    assert allot(wanted, wanted.total, noted=False) == wanted
    assert allot(wanted, 24, noted=False) == Lines(head=3, layers=11, legend=0, told=3, rows=3)
    for height in range(6, 60):
        given = allot(wanted, height, noted=True)
        assert given.total + (given != wanted) <= height
        assert given.layers >= 1
        assert given.head >= 1
    sizes = [allot(wanted, height, noted=True).layers for height in range(6, 60)]
    assert all(after >= before for before, after in pairwise(sizes))


def test_averages_are_over_rows_and_trends_over_stretches(tmp_path):
    log = logs.write(tmp_path / "digits.jsonl", logs.records(40, rows=2, step=1000))
    index = opened(log)
    window = Window("digits", "1.0", logs.START + 10_000, logs.START + 30_000)
    rows = frame(log)
    rows = rows[
        (rows["time"] >= logs.rfc3339(window.since)) & (rows["time"] < logs.rfc3339(window.until))
    ]
    averages = row_averages(index, window, None)
    for key, own in rows.groupby("key"):
        for name in ("mean", "std", "min", "max", "zero_fraction"):
            assert averages[key][name].value == pytest.approx(own[name].mean(), rel=1e-12)
            assert averages[key][name].rows == len(own) == 40
            assert averages[key][name].deviation is None
    found = trends(index, window, logs.START + 40_000, 10_000, 6)["stem"]
    assert found[:2] == [None, None]
    assert found[5] == pytest.approx(
        frame(log).query("key == 'stem'")["mean"].to_numpy()[-20:].mean(), rel=1e-9
    )
    index.close()


def test_a_single_row_may_be_further_away_than_many():
    assert RowAverage(1, 0.0, 2.5).degree == 0
    assert RowAverage(10_000, 0.0, 1.5).degree == 1
    assert RowAverage(10_000, 0.0, -3.2).degree == 2
    assert RowAverage(10_000, 0.0, None).degree == 0


def test_blocks_and_short_texts():
    assert blocks([0.0, 1.0, None, 2.0], None) == "▁▅ █"
    assert blocks([None, None], None) == "  "
    assert blocks([5.0, 5.0], None) == "▄▄"
    summary = logs.baseline().layers["stem"]["mean"]
    assert len(set(blocks([summary.mean, summary.mean + summary.spread / 9], summary))) == 1
    assert shortened(None) == "–"
    for value in (-1.23456e-123, 1e22, 123456.7, -0.00001234, 0.0, 99999.9):
        assert len(shortened(value)) <= 8
        assert float(shortened(value).replace("−", "-")) == pytest.approx(value, rel=0.2)
    assert squeezed("block.10.relu", 6) == "….relu"
    assert squeezed("relu", 6) == "relu"
    assert cell_len(squeezed("层层层层", 5)) <= 5
    assert printable("a\nb\x1b") == "a\ufffdb\ufffd"
    assert [ago(ms) for ms in (0, 95_000, 7_200_000, 3 * 86_400_000)] == [
        "0 s", "95 s", "2 h", "3 days"]  # fmt: skip


METRICS = """# HELP vitrine_requests_total requests
vitrine_requests_total{model="digits",version="1.0",endpoint="predict",status="200",error=""} 7
vitrine_requests_total{model="digits",version="1.0",endpoint="explain",status="200",error=""} 3.0
vitrine_requests_total{model="a\\"b",version="1.0",endpoint="predict",status="200",error=""} 1
vitrine_requests_total_of_something_else{model="digits"} 900
vitrine_requests_in_flight 4
"""


def test_requests_are_counted_from_the_servers_metrics():
    assert requests_by_model(METRICS) == {"digits": 10, 'a"b': 1}
    plain = 'ts_inference_requests_total{model_name="m",model_version="default",hostname="h"} 5.0\n'
    assert requests_by_model(plain) == {"m": 5}
    assert requests_by_model("garbage{} x\n") == {}
    rate = RequestRate("http://127.0.0.1:1/metrics", span=10)
    assert rate.of("digits") is None
    for second, count in enumerate([100, 104, 108, 112, 116]):
        rate.add(second, {"digits": count})
    assert rate.of("digits") == 4
    assert rate.of("other") == 0
    rate.add(5, {"digits": 3})  # It was started anew.
    assert rate.of("digits") is None
    rate.add(7, {"digits": 9})
    assert rate.of("digits") == 3
    for second in range(8, 40):
        rate.add(second, {"digits": 9})
    assert rate.of("digits") == 0


def test_requests_per_second_of_a_server(tmp_path, capsys, monkeypatch):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = METRICS.replace("} 7", f"}} {7 * len(asked)}").encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        log = logs.write(tmp_path / "digits.jsonl", logs.records(3))
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        _, out = once(capsys, monkeypatch, log, "--metrics", url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == ["/metrics"] * 2
    assert 0 < float(re.search(r"([\d.]+) requests/s", out)[1]) <= 7
    _, out = once(capsys, monkeypatch, log, "--metrics", url)
    assert "requests/s unknown" in out
    assert command.main(["top", str(log), "--metrics", "file:///etc/passwd"]) == 2
    with pytest.raises(FormatError, match="expected http"):
        RequestRate("127.0.0.1:8082")


class Terminal:
    """A program in a terminal of 100 columns and 30 lines."""

    def __init__(self, *arguments):
        self._master, slave = pty.openpty()
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "observe", "top", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def until(self, text, seconds=60):
        end = time.monotonic() + seconds
        while not re.search(text, re.sub(rf"{ESCAPE}\[[\d;?]*[a-zA-Z]", "", self.seen)):
            assert time.monotonic() < end, self.seen[-3000:]
            if not self._read():
                pytest.fail(f"it ended without {text!r}: {self.seen[-3000:]}")

    def end(self, number):
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        while self._read():
            pass
        status = self.process.wait(30)
        os.close(self._master)
        return status

    def _read(self):
        if not select.select([self._master], [], [], 0.2)[0]:
            return self.process.poll() is None
        try:
            found = os.read(self._master, 65536)
        except OSError:  # The other end is closed.
            return False
        self.seen += found.decode(errors="replace")
        return bool(found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_live_in_a_terminal(tmp_path, number):
    terminal = Terminal(tmp_path, "--every", "0.2")
    try:
        terminal.until("waiting for a first record")
        now = time.time_ns() // 1_000_000
        log = logs.write(tmp_path / "digits.jsonl", logs.records(20, start=now - 2000))
        terminal.until("20 records in all")
        logs.write(log, logs.records(22, start=now, seed=2))
        terminal.until("42 records in all")
        status = terminal.end(number)
    finally:
        terminal.process.kill()
        terminal.process.wait()
    assert status == 0
    assert terminal.seen.count(f"{ESCAPE}[?1049h") == 1
    assert terminal.seen.count(f"{ESCAPE}[?1049l") == 1  # The terminal is as it was.


def test_an_interrupt_while_a_long_log_is_read(tmp_path):
    lines = list(logs.lines(logs.records(2000, rows=2)))
    with (tmp_path / "digits.jsonl").open("w") as file:
        for _ in range(16):
            file.writelines(lines)
    terminal = Terminal(tmp_path, "--every", "0.1")
    try:
        terminal.until(r"reading: [1-9]")  # Some of it was read elsewhere, and more is.
        # As the terminal does it: to every process that reads.
        os.killpg(terminal.process.pid, signal.SIGINT)
        status = terminal.end(signal.SIGINT)
    finally:
        terminal.process.kill()
        terminal.process.wait()
    assert status == 0
    assert "Traceback" not in terminal.seen
    assert terminal.seen.rstrip().endswith((f"{ESCAPE}[?1049l", f"{ESCAPE}[?25h"))


def test_windows_are_seconds_above_zero(tmp_path, capsys):
    for wrong in ("0", "-1", "nan", "x"):
        with pytest.raises(SystemExit) as ended:
            command.main(["top", str(tmp_path), "--window", wrong])
        assert ended.value.code == 2
    assert "SECONDS" in capsys.readouterr().err


def test_the_log_may_be_a_folder_or_a_file(tmp_path: Path, capsys, monkeypatch):
    log = logs.write(tmp_path / "digits.jsonl", logs.records(4))
    clock = re.compile(r"\d\d:\d\d:\d\d UTC|is .* old")
    found = [clock.sub("", once(capsys, monkeypatch, path)[1]) for path in (log, tmp_path)]
    assert found[0] == found[1]
