"""The page's answers: what is refused and how, what is escaped, what is said in JSON."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import quote

import pytest
import requests
import uvicorn

from benchmarks import observe as benchmark
from formats.baseline import Baseline
from observe import queries
from observe.baselines import Baselines
from observe.deviation import deviation, summary_of
from observe.drift import drift
from observe.index import Index
from observe.outliers import unusual
from observe.queries import ModelSummary, Window
from observe.reader import Reader
from observe.views.asked import Asked
from observe.views.source import Source
from observe.views.web import application
from tests import activation_logs as logs
from tests.conftest import ROOT

FAULTS = (
    logs.Fault("dead", "stem", 50, 80),
    logs.Fault("nan", "block.1.relu", 200, 210),
    logs.Fault("exploding", "block.0.relu", 250),
)
BASELINE = logs.baseline()
EVIL = "<script>alert(1)</script>\"'&"


@contextmanager
def serving(path, named=None, hosts=None):
    index = Index()
    reader = Reader(path, index)
    reader.read_all()
    source = Source(reader, index, Baselines(None, named or {}))
    server = uvicorn.Server(
        uvicorn.Config(application(source, hosts), log_level="warning", ws="none", lifespan="off")
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", source
        finally:
            server.should_exit = True
            thread.join(20)
            reader.close()
            index.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "digits.jsonl"
    logs.write(path, logs.records(300, faults=FAULTS, gradients=range(0, 300, 50), errors=[7]))
    with serving(path, {"digits": BASELINE}) as (address, source):
        yield address, source


def get(address, path, status=200, **options):
    answer = requests.get(f"{address}{path}", timeout=60, **options)
    assert answer.status_code == status, answer.text
    return answer


def test_one_model_is_gone_to_and_several_are_listed(served, tmp_path):
    answer = get(served[0], "/")
    assert answer.url == f"{served[0]}/m/digits"
    logs.write(tmp_path / "a.jsonl", logs.records(3, model="a"))
    logs.write(tmp_path / "b.jsonl", logs.records(4, model="b"))
    with serving(tmp_path) as (address, _):
        text = get(address, "/").text
        assert 'href="/m/a?version=1.0"' in text
        assert 'href="/m/b?version=1.0"' in text


def test_a_model_whose_address_is_that_of_the_list_is_listed(tmp_path):
    logs.write(tmp_path / "odd.jsonl", logs.records(2, model=".."))
    with serving(tmp_path) as (address, _):
        assert requests.get(address, allow_redirects=False, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/m/nobody", 404, "it has digits"),
        ("/m/digits?version=9", 404, "it has 1.0"),
        ("/m/digits?statistic=median", 400, "expected one of mean, std"),
        ("/m/digits?scale=log", 400, "expected one of baseline, value"),
        ("/m/digits?last=2h", 400, "expected one of all, 15m, 1h, 1d"),
        ("/m/digits?flag=odd", 400, "expected one of all, error"),
        ("/m/digits?since=yesterday", 400, "expected milliseconds since 1970, or a date"),
        ("/m/digits?since=99999999999999999999", 400, "expected milliseconds"),
        ("/m/digits?since=5&until=5", 400, "since is not before until"),
        ("/m/digits/r/none", 404, "expected a request id or correlation id that is in the log"),
        ("/m/digits/compare?a=x", 400, "expected ?a=ID&b=ID"),
        ("/search?q=none", 404, "expected a whole request id or correlation id"),
        ("/search", 400, "expected a whole request id"),
        ("/elsewhere", 404, "there is nothing at /elsewhere"),
        ("/static/../page.py", 404, "there is nothing at"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_what_was_expected(served, path, status, said):
    answer = get(served[0], path, status)
    assert said in answer.text.replace("&amp;", "&")
    assert "<h1>" in answer.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/m/nobody/heatmap", 404),
        ("/api/m/digits/heatmap?statistic=median", 400),
        ("/api/m/digits/overview?until=soon", 400),
        ("/api/m/digits/r/none", 404),
        ("/api/elsewhere", 404),
    ],
)
def test_the_api_refuses_in_json(served, path, status):
    error = get(served[0], path, status).json()["error"]
    assert error["status"] == status
    assert error["message"]


def test_every_answer_forbids_content_from_elsewhere(served):
    for path, status in (("/m/digits", 200), ("/m/x", 404), ("/static/page.js", 200)):
        headers = get(served[0], path, status).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    text = get(served[0], "/m/digits").text
    assert " style=" not in text
    assert "<script>" not in text


def test_what_comes_from_clients_is_escaped(tmp_path):
    made = logs.records(5, model=EVIL, version=EVIL, layers=(EVIL, "b"), gradients=[1])
    lines = [
        line.replace('"client-0"', '"<img src=x onerror=alert(2)>"') for line in logs.lines(made)
    ]
    (tmp_path / "evil.jsonl").write_text("".join(lines))
    with serving(tmp_path) as (address, source):
        model = f"/m/{quote(EVIL, safe='')}"
        [first, *_] = queries.recent(source.index, Window(EVIL))
        one = f"{model}/r/{quote(first.request_id, safe='')}"
        pages = ["/?all", model, one, f"{model}?version={quote(EVIL)}&layers={quote(EVIL)}"]
        pages.append(f"{model}/compare?a={quote(first.request_id)}&b={quote(first.request_id)}")
        for path in pages:
            text = get(address, path).text
            assert "<script>alert" not in text
            assert "<img" not in text
            assert "&lt;script&gt;alert" in text
        for path in (f"/m/{quote(EVIL * 2, safe='')}", f"/search?q={quote(EVIL)}"):
            assert "<script>alert" not in get(address, path, 404).text
        found = get(address, f"/search?q={quote('<img src=x onerror=alert(2)>')}")
        assert "&lt;img src=x" in found.text


@pytest.mark.parametrize("name", ["a/b", "a/r/b", "x/compare", "100%", "%2F", "q?a=1#b", "a\nb"])
def test_a_name_may_be_anything(tmp_path, name):
    made = logs.records(3, model=name, layers=(name, "b"))
    odd = [line.replace('"client-0"', json.dumps("c" + name)) for line in logs.lines(made)]
    odd += [json.dumps(json.loads(odd[0]) | {"request_id": name, "model": "plain"}) + "\n"]
    (tmp_path / "odd.jsonl").write_text("".join(odd))
    quoted = quote(name, safe="")
    with serving(tmp_path) as (address, _):
        for path in (f"/m/{quoted}", f"/m/plain/r/{quoted}", f"/api/m/{quoted}/overview"):
            get(address, path)
        found = get(address, f"/search?q={quote('c' + name, safe='')}")
        assert found.url.startswith(f"{address}/m/")
        one = get(address, f"/api/m/plain/r/{quoted}").json()
        assert [layer["key"] for layer in one["layers"]] == [name, "b"]


def test_only_names_of_this_machine_are_answered_where_only_it_may_ask(served, tmp_path):
    logs.write(tmp_path / "a.jsonl", logs.records(1))
    with serving(tmp_path, hosts=["127.0.0.1", "localhost"]) as (address, _):
        get(address, "/health")
        get(address, "/m/digits", 400, headers={"Host": "evil.example"})


def test_a_million_times_the_same_question_is_asked_of_the_log_once(served):
    source = served[1]
    made = []
    for _ in range(3):
        source.cached("question", lambda: made.append(1))
    assert made == [1]


def test_new_records_are_another_token_and_another_page(tmp_path):
    path = tmp_path / "digits.jsonl"
    logs.write(path, logs.records(10))
    with serving(path) as (address, source):
        before = get(address, "/api/state").json()
        assert "10 requests in this window" in get(address, "/m/digits").text
        logs.write(path, logs.records(5, start=logs.START + 5000))
        source.reader.read_all()
        after = get(address, "/api/state").json()
        assert before["token"] != after["token"]
        assert after["records"] == 15
        assert "15 requests in this window" in get(address, "/m/digits").text


def test_what_was_skipped_is_said(tmp_path):
    path = tmp_path / "digits.jsonl"
    logs.write(path, logs.records(4))
    with path.open("a") as file:
        file.write("garbage\n{}\n")
    with serving(path) as (address, _):
        text = get(address, "/m/digits").text
        assert "skipped 1 line (not JSON), 1 line (no activation record)" in text


def test_an_empty_log_is_waited_for(tmp_path):
    with serving(tmp_path) as (address, _):
        assert "This page waits for them" in get(address, "/").text
        assert "it has none yet" in get(address, "/m/digits", 404).text.replace("&#39;", "'")


def test_the_api_has_all_digits(served):
    address, source = served
    row = queries.recent(source.index, Window("digits"), 1)[0]
    found = get(address, f"/api/m/digits/r/{row.request_id}").json()
    wanted = queries.request(source.index, row.request_id)
    assert found["request_id"] == row.request_id
    assert [one["key"] for one in found["layers"]] == list(logs.LAYERS)
    assert found["first_off_baseline"] == "block.0.relu"
    for layer, value in zip(found["layers"], wanted.layers, strict=True):
        assert layer["total"]["value"]["statistics"] == value.statistics
    heat = get(address, "/api/m/digits/heatmap?statistic=max").json()
    assert heat["values"] == queries.heatmap(source.index, Window("digits"), "max").values


def test_a_request_says_where_it_began(served):
    address, source = served
    bad = next(row for row in queries.flagged(source.index, Window("digits"), 300, "non_finite"))
    found = get(address, f"/api/m/digits/r/{bad.request_id}").json()
    assert found["first_non_finite"] == "block.1.relu"
    marks = {layer["key"]: layer["marks"] for layer in found["layers"]}
    assert "first NaN or infinity" in marks["block.1.relu"]
    assert "NaN or infinite" in marks["head"]
    assert marks["stem"] == []
    [error] = queries.flagged(source.index, Window("digits"), 300, "error")
    text = get(address, f"/m/digits/r/{error.request_id}").text
    assert "error: invalid_input" in text
    assert "The record has no layers" in text


def test_of_many_layers_the_strangest_are_shown_in_order(tmp_path):
    layers = [f"layer.{number:03}" for number in range(300)]
    faults = [logs.Fault("exploding", "layer.271"), logs.Fault("dead", "layer.020")]
    logs.write(tmp_path / "big.jsonl", logs.records(20, layers=layers, faults=faults))
    with serving(tmp_path, {"digits": logs.baseline(layers, rows=20)}) as (address, _):
        text = get(address, "/m/digits").text
        assert "100 of 300 layers are shown" in text
        heat = text[text.index('id="heat"') : text.index('data-of="heat"')]
        assert heat.count("<tr>") == 101
        assert heat.index("layer.020") < heat.index("layer.271")
        assert len(text) < 3_000_000
        few = get(address, "/m/digits?layers=layer.29*").text
        heat = few[few.index('id="heat"') : few.index('data-of="heat"')]
        assert heat.count("<tr>") == 11
        assert "No layer was measured in this window under this name" in (
            get(address, "/m/digits?layers=nothing").text
        )


def test_what_the_log_finds_wrong_is_at_the_top_with_examples(served):
    address, source = served
    text = get(address, "/m/digits").text
    top = text[text.index("What stands out") : text.index("Layers over time")]
    [bad, *_] = queries.flagged(source.index, Window("digits"), 1, "non_finite")
    assert "<strong>fault</strong> at block.0.relu" in top
    assert "block.1.relu made NaN or infinite values" in top
    assert f'href="/m/digits/r/{bad.request_id}"' in top


def test_drift_and_outliers_are_held_against_their_thresholds(tmp_path):
    faults = [logs.Fault("shifted", "block.1.relu")]
    logs.write(tmp_path / "digits.jsonl", logs.records(300, faults=faults))
    with serving(tmp_path, {"digits": BASELINE}) as (address, source):
        text = get(address, "/m/digits").text
        found = {one.key: one.worst for one in drift(source.index, Window("digits"), BASELINE)}
        assert {key for key, one in found.items() if one.alarm} == {"block.1.relu"}
        worst = found["block.1.relu"]
        assert f"{worst.statistic} {worst.distance:.2f} &gt; {worst.threshold:.2f}" in text
        for row, score in unusual(source.index, Window("digits"), BASELINE, 3):
            assert f"{score.score:.4g} of {score.threshold:.4g}" in text
            one = get(address, f"/m/digits/r/{row.request_id}").text
            assert f"score is {score.score:.4g}" in one
            assert '<span class="tag warning">unusual</span>' in one


def test_units_that_never_fired_are_listed(tmp_path):
    path = logs.write(tmp_path / "digits.jsonl", logs.records(3))
    with path.open("a") as file:
        file.write(logs.units({"stem": [900, 0, 500, 0], "head": [1, 2, 3, 4]}))
    with serving(path) as (address, _):
        text = get(address, "/m/digits").text
        table = text[text.index('id="units"') : text.index("Flagged requests")]
        assert '<span class="tag warning">2</span>' in table
        assert '<td class="what">1, 3</td>' in table


def test_a_damaged_baseline_is_named(tmp_path):
    logs.write(tmp_path / "digits.jsonl", logs.records(30))
    summary = replace(BASELINE.layers["stem"]["mean"], sketch="AAAA")
    layers = {**BASELINE.layers, "stem": {**BASELINE.layers["stem"], "mean": summary}}
    with serving(tmp_path, {"digits": replace(BASELINE, layers=layers)}) as (address, _):
        assert "a sketch is damaged" in get(address, "/m/digits", 500).text


def test_prometheus_is_told(served):
    answer = get(served[0], "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "vitrine_observe_records 300" in answer.text
    assert 'vitrine_drift_alarm{model="digits",version="1.0"}' in answer.text


def test_an_address_keeps_what_was_asked():
    asked = Asked("a/b", "1.0", "max", "value", "1h", None, None, "x*")
    assert asked.address() == ("/m/a%2Fb?version=1.0&statistic=max&scale=value&last=1h&layers=x%2A")
    assert asked.address(since=5, until=6) == (
        "/m/a%2Fb?version=1.0&statistic=max&scale=value&since=5&until=6&layers=x%2A"
    )


def test_the_last_minutes_end_with_the_latest_record_that_is_meant():
    known = [ModelSummary("m", "1", 1, 0, 0, 5_000_000), ModelSummary("m", "2", 1, 0, 0, 9_000_000)]
    assert Asked("m", last="15m").window(known).since == 8_100_001
    assert Asked("m", "1", last="15m").window(known).since == 4_100_001


@contextmanager
def command(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "observe", "page", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_listens_and_ends_cleanly(tmp_path, number):
    logs.write(tmp_path / "digits.jsonl", logs.records(5))
    with command(tmp_path, "--port", "0") as process:
        address = process.stdout.readline().strip()
        get(address, "health")
        deadline = time.monotonic() + 60
        while get(address, "api/state").json()["records"] < 5:
            assert time.monotonic() < deadline
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert errors == ""


def test_the_command_refuses_what_it_cannot_serve(tmp_path):
    with command(tmp_path / "none.jsonl") as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "none.jsonl is not there; expected an activation log" in errors
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with command(tmp_path, "--port", port) as process:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 2
            assert f"cannot listen on 127.0.0.1:{port}" in errors
    with command(tmp_path, "--model-store", tmp_path / "no") as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "expected a folder of archives" in errors
    assert os.listdir(tmp_path) == []


def test_the_benchmarks_log_and_baseline_are_valid(tmp_path):
    benchmark.write_log(tmp_path / "network.jsonl", 30, layers=3)
    benchmark.write_baseline(tmp_path, layers=3)
    index = Index()
    state = Reader(tmp_path / "network.jsonl", index).read_all()
    assert (state.records, state.skipped) == (30, {})
    [layer, *others] = queries.overview(index, Window("network"))
    assert len(others) == 2
    summary = summary_of(Baseline.read(tmp_path), layer.key, "mean")
    assert abs(deviation(layer.statistics["mean"], summary)) < 1
    index.close()


@pytest.mark.parametrize("named", [None, {"digits": BASELINE}])
@pytest.mark.parametrize("ends", [(-1.7e308, 1.7e308), (1.6e308, 1.7e308), (-5e-324, 5e-324)])
def test_numbers_at_the_ends_of_what_there_is_are_shown(tmp_path, named, ends):
    made = list(logs.lines(logs.records(40)))
    for number, line in enumerate(made):
        record = json.loads(line)
        record["layers"]["stem"] |= {"mean": ends[number % 2], "max": ends[number % 2]}
        made[number] = json.dumps(record) + "\n"
    (tmp_path / "digits.jsonl").write_text("".join(made))
    with serving(tmp_path, named) as (address, source):
        for statistic in ("mean", "max", "min"):
            for scale in ("baseline", "value"):
                get(address, f"/m/digits?statistic={statistic}&scale={scale}")
        [row] = queries.recent(source.index, Window("digits"), 1)
        get(address, f"/m/digits/r/{row.request_id}")
        get(address, "/api/m/digits/overview")
        get(address, "/metrics")
