import json
import os
import random
import re
import shutil
import subprocess
import threading
import time
from dataclasses import replace

import pytest

from handlers.message import Response, Run
from handlers.record_header import RecordHeader
from server.condition import FAILED, READY, RECOVERING, Condition, ModelCondition
from server.errors import UsageError
from server.exposition import counter, gauge, histogram, write
from server.metrics import metrics_text
from server.model_metrics import ModelMetrics
from server.observe import Observer
from server.request_log import RequestLog, resolve
from server.request_metrics import RequestMetrics
from server.request_record import Reader, Unreadable
from server.torchserve_metrics import torchserve_families
from server.watch import Watch
from tests.conftest import ROOT

FIELDS = {
    "start": 1795642903473921,
    "end": 1795642903480421,
    "active": 6,
    "client": "192.0.2.1",
    "status": 200,
    "received": 232,
    "sent": 303,
    "ended": "--",
    "id": "8d490dc1",
    "method": "POST",
    "path": "/predictions/mlp",
    "correlation": "-",
    "traceparent": "-",
    "record": None,
    "code": "-",
}
TRACE = "11112222333344445555666677778888"


def line(**changes):
    return json.dumps(list((FIELDS | changes).values())).encode()


def reader():
    return Reader({"mlp": ["1.0"], "two": ["1", "2"], "weird name": ["1/2,3"]})


def read(**changes):
    return reader().read(line(**changes))


def promtool(text):
    if shutil.which("promtool") is None:
        if os.environ.get("CI"):
            pytest.fail("no promtool: .ci/run installs Debian's package `prometheus`")
        pytest.skip("no promtool")
    return subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )


# The line


def test_a_line_becomes_the_whole_record():
    record = ["mlp", "1.0", 3, 16, 1100, 1300, 120, None]
    assert read(record=record, traceparent=f"00-{TRACE}-1111222233334444-01") == {
        "time": "2026-11-25T21:41:43.473Z",
        "request_id": "8d490dc1",
        "correlation_id": None,
        "trace_id": TRACE,
        "parent_id": "1111222233334444",
        "span_id": None,
        "sampled": True,
        "client": "192.0.2.1",
        "method": "POST",
        "path": "/predictions/mlp",
        "endpoint": "predict",
        "model": "mlp",
        "version": "1.0",
        "status": 200,
        "error": None,
        "total_ms": 6.5,
        "queued_ms": 1.1,
        "began_ms": 1.3,
        "run_ms": 0.12,
        "batch": 16,
        "rows": 3,
        "bytes_in": 232,
        "bytes_out": 303,
        "ended": "--",
    }


def test_what_the_handler_writes_is_what_is_read():
    header = RecordHeader("weird name", "1/2,3")

    def through(began, *response):
        text = header.text("1000000", began, Response(*response))
        return read(record=json.loads(text))

    found = through(1.25, 200, b"", {}, "", 5, Run(2, 1.3, 0.001))
    assert (found["model"], found["version"], found["rows"]) == ("weird name", "1/2,3", 5)
    assert (found["queued_ms"], found["run_ms"], found["batch"]) == (250.0, 1.0, 2)
    refused = through(1.25, 400, b"", {}, "wrong_type")
    assert (refused["error"], refused["rows"], refused["run_ms"]) == ("wrong_type", None, None)
    # A clock that was set back.
    assert through(0.5, 200, b"", {})["queued_ms"] == 0


@pytest.mark.parametrize("arrival", ["", "-1", "1.5", "9" * 19, "٣", "x"])
def test_an_arrival_that_is_none_tells_no_time(arrival):
    text = RecordHeader("m", "1").text(arrival, 1.0, Response(200, b"", {}))
    assert text == '["m","1",null,null,null,null,null,null]'


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/predictions/mlp", ("predict", "mlp", "1.0")),
        ("/predictions/two", ("predict", "two", None)),
        ("/predictions/two/2", ("predict", "two", "2")),
        ("/predictions/two/3", ("predict", "two", None)),
        ("/predictions/nobody", ("predict", None, None)),
        ("/explanations/mlp/1.0", ("explain", "mlp", "1.0")),
        ("/v1/models/mlp:predict", ("predict", "mlp", "1.0")),
        ("/v1/models/mlp", ("status", "mlp", "1.0")),
        ("/v2/models/weird%20name/versions/1%2F2%2C3/infer", ("predict", "weird name", "1/2,3")),
        ("/v2/models/mlp/ready", ("status", "mlp", "1.0")),
        ("/v2/health/ready", ("status", None, None)),
        ("/inference.GRPCInferenceService/ModelInfer", ("grpc", None, None)),
        ("/", ("other", None, None)),
        ("-", ("other", None, None)),
    ],
)
def test_the_path_says_what_was_asked_of_whom(path, place):
    found = read(path=path)
    assert (found["endpoint"], found["model"], found["version"]) == place


def test_a_client_that_went_away_has_a_status_too():
    found = read(status=-1, ended="CH")
    assert (found["status"], found["error"]) == (499, "client_closed")


@pytest.mark.parametrize(
    "record",
    [
        [["mlp"], "1.0", 1, 1, 1, 1, 1, None],
        ["mlp", 1.0, 1, 1, 1, 1, 1, None],
        ["mlp", "1.0", "x", 1, 1, 1, 1, None],
        ["mlp", "1.0", 1, {}, 1, 1, 1, None],
        ["mlp", "1.0", 1, -1, 1, 1, 1, None],
        ["mlp", "1.0", 1, None, 1, 1, 1, None],
        ["mlp", "1.0", 1, 1, "1", 1, 1, None],
        ["mlp", "1.0", 1, 1, 1, 1, 1, 7],
        ["mlp"],
        "mlp",
        {},
    ],
)
def test_what_a_handler_of_somebody_elses_tells_may_be_anything(record):
    observer = Observer(reader(), None)
    observer.take([line(record=record), line()])
    found = samples(write(observer.families()))
    assert found["vitrine_request_log_unreadable_lines_total"] == 1
    assert sum(value for key, value in found.items() if "requests_total" in key) == 1


def test_a_name_that_is_not_served_is_no_label():
    found = read(record=["made up", "9", 1, 1, 1, 1, 1, None])
    assert (found["model"], found["version"]) == ("mlp", "1.0")


def test_a_call_has_the_status_that_http_would_have():
    found = read(
        path="/inference.GRPCInferenceService/ModelInfer", record=[None] * 7 + ["wrong_type", 400]
    )
    assert (found["status"], found["error"]) == (400, "wrong_type")


def test_a_connection_without_a_request_is_a_line_too():
    found = reader().read(
        b'[-,1795642903491921,7,"127.0.0.1",400,0,0,"PR","-","-","-","-","-",-,"-"]'
    )
    assert (found["time"], found["status"]) == ("2026-11-25T21:41:43.484Z", 400)
    assert (found["total_ms"], found["method"], found["path"]) == (7.0, None, None)


@pytest.mark.parametrize(
    "text", [b"", b"Proxy public started.", b"[]", b'["1"]', line(end="x"), line(record=[1, 2])]
)
def test_what_is_no_line_of_a_request_is_refused(text):
    with pytest.raises(Unreadable):
        reader().read(text)


def test_nothing_that_a_client_sends_breaks_a_line(tmp_path):
    log = RequestLog(tmp_path / "log")
    hostile = ['"}\n{"status": 200', "\\", "\u2028\x00\x1b[31m", "%0a%0d", "é" * 100]
    observer = Observer(reader(), log)
    observer.take([line(path=text, correlation=text) for text in hostile])
    log.close()
    lines = (tmp_path / "log").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(one)["path"] for one in lines] == hostile
    assert [json.loads(one)["correlation_id"] for one in lines] == hostile


# Where it goes


def test_lines_go_to_the_end_of_the_file_and_to_a_new_one_after_a_rotation(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    log = RequestLog(path)

    def put(text):
        log.write([text])
        deadline = time.monotonic() + 10
        while not path.exists() or not path.read_bytes().endswith(text):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    put(b"1\n")
    path.rename(tmp_path / "old")
    put(b"2\n")
    # copytruncate
    path.write_bytes(b"")
    put(b"3\n")
    log.close()
    assert (tmp_path / "old").read_bytes() == b"before\n1\n"
    assert path.read_bytes() == b"3\n"
    assert log.dropped == 0


def test_a_reader_that_does_not_read_delays_nobody():
    read_end, write_end = os.pipe()
    log = RequestLog(write_end)
    lines = [b"x" * 999 + b"\n"] * 1000
    started = time.monotonic()
    for _ in range(20):
        log.write(lines)
    assert time.monotonic() - started < 5
    assert 10_000 < log.dropped < 20_000
    got = 0

    def drain():
        nonlocal got
        while got < 20_000 - log.dropped:
            got += os.read(read_end, 1 << 20).count(b"\n")

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    thread.join(10)
    assert got == 20_000 - log.dropped
    log.close()
    os.close(write_end)
    os.close(read_end)


def test_a_log_that_cannot_be_written_counts_and_says_so(capfd):
    read_end, write_end = os.pipe()
    os.close(read_end)
    log = RequestLog(write_end)
    log.write([b"1\n", b"2\n"])
    log.close()
    assert log.dropped == 2
    assert "the request log cannot be written to standard output (Broken pipe)" in (
        capfd.readouterr().err
    )
    os.close(write_end)


def test_the_setting_names_a_file_that_can_be_written(tmp_path):
    assert resolve("off") == "off"
    assert resolve("stdout") == "stdout"
    assert resolve(str(tmp_path / "log")) == str(tmp_path / "log")
    with pytest.raises(UsageError, match=r"no/log cannot be written \(No such file"):
        resolve(str(tmp_path / "no" / "log"))


# Metrics


def samples(text):
    """Values by name and labels as they are written."""
    found = {}
    for one in text.splitlines():
        if not one.startswith("#"):
            name, _, value = one.rpartition(" ")
            assert name not in found
            found[name] = float(value)
    return found


def test_counts_and_sums_are_exact():
    random.seed(7)
    metrics, source = RequestMetrics(), reader()
    times = [random.choice([0, 499, 500, 501, 10_000, 10**9]) for _ in range(500)]
    for micros in times:
        end = FIELDS["start"] + micros
        metrics.count(
            source.read(line(end=end, record=["mlp", "1.0", 2, 4, micros, micros, micros, None]))
        )
    metrics.count(source.read(line(status=503, code="overloaded")))
    metrics.count(
        source.read(
            line(status=400, record=["mlp", "1.0", None, None, 10, None, None, "wrong_type"])
        )
    )
    text = write(metrics.families())
    found = samples(text)
    good = 'model="mlp",version="1.0",endpoint="predict",status_class="2xx"'
    name = "vitrine_request_duration_seconds"
    assert found[f"{name}_count{{{good}}}"] == 500
    assert found[f"{name}_sum{{{good}}}"] == pytest.approx(sum(times) / 1e6, rel=1e-12)
    for bound, text_of in ((500, "0.0005"), (10_000, "0.01"), (120_000_000, "120")):
        expected = sum(micros <= bound for micros in times)
        assert found[f'{name}_bucket{{{good},le="{text_of}"}}'] == expected
    assert found[f'{name}_bucket{{{good},le="+Inf"}}'] == 500
    both = 'model="mlp",version="1.0"'
    assert found[f"vitrine_queue_duration_seconds_count{{{both}}}"] == 501
    assert found[f"vitrine_run_duration_seconds_count{{{both}}}"] == 500
    assert found[f"vitrine_request_rows_sum{{{both}}}"] == 1000
    assert found[f'vitrine_batch_requests_bucket{{{both},le="2"}}'] == 0
    assert found[f'vitrine_batch_requests_bucket{{{both},le="4"}}'] == 500
    assert found['vitrine_requests_refused_total{model="mlp",error="overloaded"}'] == 1
    assert sum(value for key, value in found.items() if "refused" in key) == 1
    assert sum(value for key, value in found.items() if "vitrine_requests_total" in key) == 502
    assert found[f"vitrine_received_bytes_total{{{both}}}"] == 502 * 232


TORCHSERVE = """\
# HELP QueueTime Torchserve prometheus gauge metric with unit: Milliseconds
# TYPE QueueTime gauge
QueueTime{Level="Host",Hostname="h",} 250.0
# HELP Requests2XX Torchserve prometheus counter metric with unit: Count
# TYPE Requests2XX counter
Requests2XX{Level="Host",Hostname="a\\"b\\\\n",} 3.0
# HELP ts_inference_latency_microseconds A counter with unit: Microseconds
# TYPE ts_inference_latency_microseconds counter
ts_inference_latency_microseconds{model_name="m",model_version="default",hostname="h",} 2.5E6
# HELP ts_inference_requests_total Torchserve prometheus counter metric with unit: Count
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="m",model_version="default",hostname="h",} 12.0
# HELP MemoryUsed Torchserve prometheus gauge metric with unit: Megabytes
# TYPE MemoryUsed gauge
# HELP vitrine_activation_mean Torchserve prometheus gauge metric with unit: Count
# TYPE vitrine_activation_mean gauge
vitrine_activation_mean{Layer="block.1",ModelName="m",Level="Model",Hostname="h",} NaN
# HELP vitrine_activation_non_finite Torchserve prometheus counter metric with unit: Count
# TYPE vitrine_activation_non_finite counter
vitrine_activation_non_finite{Layer="x",ModelName="m",Level="Model",Hostname="h",} 4.0
"""


def test_torchserves_metrics_get_names_that_prometheus_recommends():
    text = write(torchserve_families(TORCHSERVE))
    lines = [one for one in text.splitlines() if not one.startswith("#")]
    assert lines == [
        'torchserve_queue_time_seconds{level="Host",hostname="h"} 0.25',
        'torchserve_requests_2xx_total{level="Host",hostname="a\\"b\\\\n"} 3',
        'torchserve_inference_latency_seconds_total{model="m",version="default",hostname="h"} 2.5',
        'torchserve_inference_requests_total{model="m",version="default",hostname="h"} 12',
        'vitrine_activation_mean{layer="block.1",model="m",level="Model",hostname="h"} nan',
        'vitrine_activation_non_finite_total{layer="x",model="m",level="Model",hostname="h"} 4',
    ]


def test_promtool_accepts_everything():
    metrics, source = RequestMetrics(), reader()
    for changes in (
        {},
        {"record": ["mlp", "1.0", 2, 4, 5, 6, 7, None]},
        {"status": 503, "code": "overloaded"},
    ):
        metrics.count(source.read(line(**changes)))
    observer = Observer(reader(), None)
    text = metrics_text(
        {
            "requests": metrics.families,
            "observer": observer.families,
            "torchserve": lambda: torchserve_families(TORCHSERVE),
            "broken": lambda: (_ for _ in ()).throw(OSError("gone")),
        }
    )
    assert 'vitrine_scrape_part_up{part="broken"} 0' in text
    assert 'vitrine_scrape_part_up{part="requests"} 1' in text
    checked = promtool(text)
    assert (checked.returncode, checked.stderr, checked.stdout) == (0, "", "")
    # It does tell what is wrong.
    assert promtool("# TYPE bad counter\nbad 1\n").returncode != 0


def test_labels_are_escaped():
    text = write([gauge("a", "t", ("l",), {('q"\\\n',): 1}), counter("b_total", "t", (), {})])
    assert text == '# HELP a t\n# TYPE a gauge\na{l="q\\"\\\\\\n"} 1\n'
    found = write([histogram("h", "t", (), {(): ([1], [2, 3], 4.5)})])
    assert re.findall(r"^[^#].*", found, re.MULTILINE) == [
        'h_bucket{le="1"} 2', 'h_bucket{le="+Inf"} 5', "h_sum 4.5", "h_count 5",
    ]  # fmt: skip


def test_what_is_known_of_models_is_told(tmp_path):
    path = tmp_path / "condition.json"
    metrics = ModelMetrics(["m"], Watch(path))

    def told(*versions):
        Condition(live=True, models=versions).write(path)
        found = samples(write(metrics.families()))
        return [
            found[f'vitrine_{name}{{model="m"}}']
            for name in ("model_ready", "model_workers", "worker_restarts_total")
        ]

    one = ModelCondition("m", "1.0", READY, workers=2, workers_expected=2)
    two = ModelCondition("m", "2.0", RECOVERING, workers=0, restarts=3)
    assert told(one) == [1, 2, 0]
    assert told(one, two) == [0, 2, 3]
    assert told(one, replace(two, state=READY, workers=1, restarts=4)) == [1, 3, 4]
    assert told(replace(two, state=FAILED)) == [0, 0, 3]


# What is given to Prometheus


@pytest.mark.parametrize(
    "check",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "tests.yml"],
    ],
)
def test_promtool_accepts_what_is_deployed(check):
    promtool("")
    folder = ROOT / "deploy" / "prometheus"
    done = subprocess.run(
        ["promtool", *check], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
