"""The request log, the metrics and the traces of a real server."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from observe.metrics import FAMILIES
from tests.conftest import ROOT
from tests.integration.conftest import export_all, running
from tests.integration.test_plain_torchserve import free_ports

if os.environ.get("VITRINE_URL"):
    pytest.skip("starts a server of its own", allow_module_level=True)
pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="no haproxy: the container tests ask the image's"
)
MLP = {"inputs": [0.5] * 16}
SECRET = "s3cret-of-the-client"


class Monitored:
    """A server, its log and its metrics."""

    def __init__(self, server, log):
        self.server, self.log = server, log

    def lines(self):
        return [json.loads(one) for one in self.log.read_bytes().splitlines()]

    def wait_for(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    def line_of(self, correlation):
        """The one line of a request, once it is there."""
        found = self.wait_for(
            lambda: [one for one in self.lines() if one["correlation_id"] == correlation]
        )
        time.sleep(0.1)
        assert [one for one in self.lines() if one["correlation_id"] == correlation] == found
        assert len(found) == 1
        return found[0]

    def metrics(self):
        answer = requests.get(f"{self.server.metrics}/metrics", timeout=10)
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return answer.text

    def count(self, name):
        """Sum of all samples of a metric."""
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(map(float, values))

    def post(self, path, document=MLP, **options):
        return self.server.post(path, document, **options)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitored")
    store = folder / "store"
    export_all([ROOT / "models" / "activation_mlp.py"], store)
    log = folder / "requests.log"
    with running(store, folder, "--front", "--request-log", str(log)) as server:
        yield Monitored(server, log)


def raw(url, data):
    where = urlsplit(url)
    with closing(socket.create_connection((where.hostname, where.port), timeout=10)) as client:
        client.sendall(data)
        client.settimeout(2)
        return client.recv(65536)


# The log


def test_a_prediction_has_a_line_with_everything(served):
    trace = "11112222333344445555666677778888"
    answer = served.post(
        "/predictions/activation_mlp",
        headers={
            "X-Correlation-Id": "whole",
            "traceparent": f"00-{trace}-aaaabbbbccccdddd-01",
        },
    )
    assert answer.status_code == 200
    found = served.line_of("whole")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    assert found["request_id"] == answer.headers["x-request-id"]
    assert (found["trace_id"], found["parent_id"]) == (trace, "aaaabbbbccccdddd")
    assert (found["model"], found["version"], found["endpoint"]) == (
        "activation_mlp", "1.0", "predict",
    )  # fmt: skip
    assert (found["status"], found["error"], found["method"]) == (200, None, "POST")
    assert (found["batch"], found["rows"], found["client"]) == (1, 1, "127.0.0.1")
    assert 0 < found["queued_ms"] <= found["began_ms"] <= found["total_ms"]
    assert 0 < found["run_ms"] <= found["total_ms"] - found["began_ms"]
    assert found["bytes_in"] > len(json.dumps(MLP))
    assert found["bytes_out"] > len(answer.content)
    assert not [name for name in answer.headers if name.lower().startswith("x-vitrine")]


REFUSED = [
    ("/predictions/activation_mlp", {"data": b"{"}, 400, "not_json", "activation_mlp"),
    ("/predictions/nobody", {}, 404, "model_not_found", None),
    ("/v2/models/nobody/infer", {}, 404, "model_not_found", None),
    ("/v1/models/activation_mlp", {}, 405, "method_not_allowed", "activation_mlp"),
    ("/v2/models/nobody", {"method": "GET"}, 404, "model_not_found", None),
    ("/nothing", {}, 404, "not_found", None),
    ("/predictions/activation_mlp", {"method": "DELETE"}, 405, "method_not_allowed",
     "activation_mlp"),
    ("/predictions/activation_mlp", {"headers": {"x": "y" * 9000}}, 431, "headers_too_large",
     "activation_mlp"),
    ("/predictions/activation_mlp", {"data": b"x" * 17_000_000}, 413, "body_too_large",
     "activation_mlp"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "options", "status", "code", "model"), REFUSED)
def test_what_is_refused_has_a_line_too(served, path, options, status, code, model):
    name = f"refused-{random.getrandbits(64)}"
    options = {"method": "POST", "data": b"{}"} | options
    headers = {"X-Correlation-Id": name, "Content-Type": "application/json"}
    headers |= options.pop("headers", {})
    # As it is: requests would mend the path.
    session = requests.Session()
    request = requests.Request(options["method"], served.server.url, headers, data=options["data"])
    prepared = session.prepare_request(request)
    prepared.url = served.server.url + path
    answer = session.send(prepared, timeout=30)
    assert answer.status_code == status
    found = served.line_of(name)
    assert (found["status"], found["error"], found["model"]) == (status, code, model)
    assert found["path"] == path
    assert found["run_ms"] is None
    assert not [key for key in answer.headers if key.lower().startswith("x-vitrine")]
    assert answer.headers["x-request-id"] == found["request_id"]


def test_bytes_that_are_no_http_have_a_line(served):
    before = len(served.lines())
    assert b"400" in raw(served.server.url, b"garbage\r\n\r\n")
    assert b"400" in raw(served.server.url, b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n")
    served.wait_for(lambda: len(served.lines()) >= before + 2)
    garbage, percent = served.lines()[before:]
    assert (garbage["status"], garbage["method"], garbage["path"]) == (400, None, None)
    assert (percent["status"], percent["path"]) == (400, "/%zz")
    assert percent["error"] == "bad_request"
    assert served.count("vitrine_request_log_unreadable_lines_total") == 0


def test_nothing_that_a_client_sends_forges_a_line_or_a_number(served):
    before = len(served.lines())
    hostile = [
        ('x-correlation-id: "}\\n{"status": 200, "model": "forged"}'),
        ("x-correlation-id: \\u0000\\\\\"'%0a%0d"),
        ("traceparent: 00-" + '"' * 40),
        ("x-vitrine-record: forged,1,5,5,5,5,5,forged"),
        ("x-vitrine-arrival: 1"),
        ("X-Vitrine-Arrival: 1\r\nx-vitrine-arrival: 2"),
    ]
    body = json.dumps(MLP)
    for path in ("/predictions/activation_mlp", '/"}{\\', "/a%0a%22%7d"):
        for header in hostile:
            raw(
                served.server.url,
                f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{header}\r\n"
                f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode(),
            )
    sent = 3 * len(hostile)
    served.wait_for(lambda: len(served.lines()) >= before + sent)
    new = served.lines()[before:]
    assert len(new) == sent
    good = [one for one in new if one["path"] == "/predictions/activation_mlp"]
    assert len(good) == len(hostile)
    assert {(one["status"], one["model"], one["rows"]) for one in good} == {
        (200, "activation_mlp", 1)
    }
    # Of a forged arrival it would be 50 years.
    assert all(one["queued_ms"] < 60_000 for one in good)
    assert [one["correlation_id"] for one in new if one["correlation_id"]].count(
        '"}\\n{"status": 200, "model": "forged"}'
    ) == 3
    assert {one["error"] for one in new} == {None, "not_found"}


def test_no_secret_is_logged(served):
    served.post(
        f"/predictions/activation_mlp?key={SECRET}",
        {"inputs": [SECRET]},
        headers={
            "Authorization": f"Bearer {SECRET}",
            "Cookie": f"a={SECRET}",
            "X-Api-Key": SECRET,
            "X-Correlation-Id": "secret",
        },
    )
    assert served.line_of("secret")["path"] == "/predictions/activation_mlp"
    assert SECRET not in served.log.read_text()


def test_a_grpc_call_has_one_line_with_the_models_part(served):
    grpc = pytest.importorskip("tritonclient.grpc")
    numpy = pytest.importorskip("numpy")
    before = len(served.lines())
    client = grpc.InferenceServerClient(urlsplit(served.server.url).netloc)
    tensor = grpc.InferInput("features", [2, 16], "FP32")
    tensor.set_data_from_numpy(numpy.zeros((2, 16), numpy.float32))
    name = client.get_model_metadata("activation_mlp").inputs[0].name
    tensor = grpc.InferInput(name, [2, 16], "FP32")
    tensor.set_data_from_numpy(numpy.zeros((2, 16), numpy.float32))
    client.infer("activation_mlp", [tensor])
    with pytest.raises(grpc.InferenceServerException):
        client.infer("nobody", [tensor])
    with pytest.raises(grpc.InferenceServerException):
        client.get_model_metadata("nobody")
    client.close()
    served.wait_for(lambda: len(served.lines()) >= before + 4)
    time.sleep(0.1)
    metadata, good, *bad = served.lines()[before:]
    assert (metadata["endpoint"], metadata["status"]) == ("grpc", 200)
    assert (good["model"], good["status"], good["rows"], good["batch"]) == (
        "activation_mlp", 200, 2, 1,
    )  # fmt: skip
    assert good["run_ms"] > 0
    assert [(one["status"], one["error"]) for one in bad] == [(404, "model_not_found")] * 2


# Metrics


def test_counts_are_the_requests_that_were_sent(served):
    names = ("vitrine_requests_total", "vitrine_request_duration_seconds_count",
             "vitrine_queue_duration_seconds_count", "vitrine_run_duration_seconds_count",
             "vitrine_batch_requests_count", "vitrine_request_rows_sum")  # fmt: skip
    served.wait_for(lambda: served.count("vitrine_requests_total") == len(served.lines()))
    before = [served.count(name) for name in names]
    lines = len(served.lines())

    def send(place):
        if place % 10 == 0:
            return served.post("/predictions/nobody").status_code
        if place % 10 == 1:
            return served.post("/predictions/activation_mlp", {"inputs": "no"}).status_code
        rows = 1 + place % 3
        return served.post("/predictions/activation_mlp", {"inputs": [[0.5] * 16] * rows})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(500)))
    assert answers.count(404) == answers.count(400) == 50
    served.wait_for(lambda: len(served.lines()) == lines + 500)
    grown = [served.count(name) - old for name, old in zip(names, before, strict=True)]
    rows = sum(1 + place % 3 for place in range(500) if place % 10 > 1)
    assert grown == [500, 500, 450, 400, 400, rows]
    assert served.count("vitrine_request_uncounted_total") == 0
    assert served.count("vitrine_requests_in_flight") == 0
    # Each request stands in the batch that the others were told of.
    batches = [one["batch"] for one in served.lines()[lines:] if one["batch"]]
    for size in set(batches):
        assert batches.count(size) % size == 0


def tool(name):
    if shutil.which(name) is None:
        if os.environ.get("CI"):
            pytest.fail(f"no {name}: .ci/run installs Debian's package `prometheus`")
        pytest.skip(f"no {name}")
    return name


def test_promtool_accepts_what_is_scraped(served):
    served.post("/predictions/activation_mlp", headers={"X-Activations": "stats"})
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=served.metrics(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr + done.stdout) == (0, "")


def test_only_the_metrics_are_at_their_address(served):
    assert requests.head(f"{served.server.metrics}/metrics", timeout=10).status_code == 200
    assert requests.get(f"{served.server.metrics}/other", timeout=10).status_code == 404
    assert requests.post(f"{served.server.metrics}/metrics", timeout=10).status_code == 501


def eventful(served):
    """Let everything happen that a metric tells of."""
    looking = {"X-Activations": "stats"}
    expected = ("vitrine_activation_non_finite_total", "vitrine_activation_dead_units")

    def happened():
        # Again and again: units are counted for a part of the time only, and gauges written once
        # a second. The second is too large for float32 once multiplied.
        for inputs in ([[0.5] * 16] * 250, [3e38] * 16):
            served.post("/predictions/activation_mlp", {"inputs": inputs}, headers=looking)
        served.post("/predictions/nobody")
        text = served.metrics()
        return text if all(name in text for name in expected) else None

    return served.wait_for(happened, 60)


def test_dashboard_and_rules_ask_for_what_there_is(served):
    told = set(re.findall(r"^(\w+)", eventful(served), re.MULTILINE)) | set(FAMILIES)
    dashboard = json.loads((ROOT / "deploy/grafana/vitrine.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked += [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]
    asked += re.findall(r"expr:(?: >-)?(.*(?:\n {10}.*)*)",
                        (ROOT / "deploy/prometheus/rules.yml").read_text())  # fmt: skip
    assert len(asked) > 40
    names = {name for one in asked for name in re.findall(r"(?<![\w:])(vitrine_\w+)", one)}
    assert len(names) > 20
    assert names <= told, names - told


@contextmanager
def prometheus(folder, target):
    """A real Prometheus that scrapes a server every second."""
    config = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
    config = config.replace("15s", "1s").replace("127.0.0.1:8082", target)
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(ROOT / "deploy/prometheus/rules.yml", folder)
    url = f"127.0.0.1:{free_ports(1)[0]}"
    with (folder / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={url}",
            ],
            stdout=output,
            stderr=output,
        )
        try:
            yield f"http://{url}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def test_prometheus_scrapes_it_and_answers_every_panel(served, tmp_path):
    eventful(served)
    with prometheus(tmp_path, urlsplit(served.server.metrics).netloc) as url:

        def ask(expression):
            try:
                answer = requests.get(
                    f"{url}/api/v1/query", params={"query": expression}, timeout=5
                )
            except requests.ConnectionError:
                return None
            if answer.status_code == 503:  # not ready yet
                return None
            document = answer.json()
            assert document["status"] == "success", (expression, document)
            return [one for one in document["data"]["result"] if one["value"][1] != "NaN"]

        deadline = time.monotonic() + 60
        quantile = (
            "histogram_quantile(0.5, sum by (le, model) "
            '(rate(vitrine_request_duration_seconds_bucket{endpoint="predict",model!=""}[10s])))'
        )
        while not (found := ask(quantile)):
            assert time.monotonic() < deadline
            served.post("/predictions/activation_mlp")
            time.sleep(0.2)
        assert found[0]["metric"] == {"model": "activation_mlp"}
        assert 0 < float(found[0]["value"][1]) < 10
        assert ask('up{job="vitrine"}')[0]["value"][1] == "1"
        dashboard = json.loads((ROOT / "deploy/grafana/vitrine.json").read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"].replace("$__rate_interval", "10s")
                for name in ("instance", "model", "layer"):
                    expression = expression.replace(f"${name}", ".*")
                # All are understood; what has not happened in ten seconds is empty.
                ask(expression)


# When others are slow or gone


def observer_pid(served):
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if b"server.observe" in command and parent == served.server.pid:
                return int(entry.name)
    raise AssertionError("no observer")


def test_a_reader_that_hangs_delays_nobody_and_what_is_lost_is_counted(served):
    lines = len(served.lines())
    counted = served.count("vitrine_requests_total")
    pid = observer_pid(served)
    long = {"X-Correlation-Id": "x" * 256}
    sent = 3000
    session = requests.Session()
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(sent):
            path = f"{served.server.url}/nothing/{'y' * 500}"
            assert session.get(path, headers=long, timeout=5).status_code == 404
    finally:
        os.kill(pid, signal.SIGCONT)
    served.wait_for(
        lambda: (
            served.count("vitrine_requests_total") + served.count("vitrine_request_uncounted_total")
            == counted + sent
        )
    )
    lost = served.count("vitrine_request_uncounted_total")
    assert 0 < lost < sent
    assert len(served.lines()) == lines + sent - lost


# Traces


class Receiver:
    """Takes OTLP over HTTP."""

    def __init__(self, status=200):
        self.spans, self.resources, self.asked = [], [], 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                receiver.asked += 1
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                if status == 200:
                    assert self.path == "/v1/traces"
                    assert self.headers["content-type"] == "application/x-protobuf"
                    receiver.take(body)

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(
                {a.key: a.value.string_value for a in resource.resource.attributes}
            )
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def traceparent(place, flags):
    return f"00-{place:032x}-{place + 1:016x}-{flags:02x}"


def test_a_sampled_request_becomes_a_span_with_its_wait_and_its_run(served, tmp_path):
    pytest.importorskip("opentelemetry.sdk")
    receiver = Receiver()
    log = tmp_path / "requests.log"
    store = served.log.parent / "store"
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    options = ("--front", "--request-log", str(log))
    with running(store, tmp_path, *options, **environment) as server:
        for place, flags in ((1, 1), (2, 0), (3, 1)):
            path = "activation_mlp" if place < 3 else "nobody"
            headers = {"traceparent": traceparent(place, flags), "X-Correlation-Id": f"c{place}"}
            server.post(f"/predictions/{path}", MLP, headers=headers)
        server.post("/predictions/activation_mlp", MLP)
    receiver.close()
    lines = {one["correlation_id"]: one for one in map(json.loads, log.read_bytes().splitlines())}
    by_trace = {}
    for span in receiver.spans:
        by_trace.setdefault(int.from_bytes(span.trace_id, "big"), []).append(span)
    assert by_trace.keys() == {1, 3}
    assert receiver.resources[0]["service.name"] == "vitrine"
    root = next(span for span in by_trace[1] if span.name == "predict activation_mlp")
    children = {span.name: span for span in by_trace[1] if span is not root}
    assert children.keys() == {"queue", "run"}
    assert root.parent_span_id.hex() == f"{2:016x}"
    line = lines["c1"]
    assert (root.span_id.hex(), line["sampled"]) == (line["span_id"], True)
    assert {span.parent_span_id for span in children.values()} == {root.span_id}
    length = (root.end_time_unix_nano - root.start_time_unix_nano) / 1e6
    assert length == pytest.approx(line["total_ms"], abs=1e-5)
    queue, run = children["queue"], children["run"]
    assert root.start_time_unix_nano == queue.start_time_unix_nano
    assert queue.end_time_unix_nano <= run.start_time_unix_nano
    assert run.end_time_unix_nano <= root.end_time_unix_nano
    attributes = {one.key: one.value for one in root.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["vitrine.model"].string_value == "activation_mlp"
    assert attributes["vitrine.correlation_id"].string_value == "c1"
    assert [span.name for span in by_trace[3]] == ["predict"]
    assert lines["c2"]["span_id"] is None


def test_a_collector_that_fails_disturbs_nobody(served, tmp_path):
    pytest.importorskip("opentelemetry.sdk")
    receiver = Receiver(status=500)
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    store = served.log.parent / "store"
    with running(store, tmp_path, "--front", "--request-log", "off", **environment) as server:
        for _ in range(50):
            assert server.post("/predictions/activation_mlp", MLP).status_code == 200
        deadline = time.monotonic() + 20
        while not receiver.asked:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        text = requests.get(f"{server.metrics}/metrics", timeout=10).text
        assert 'vitrine_trace_requests_total{outcome="handed_on"}' in text
        assert server.post("/predictions/activation_mlp", MLP).status_code == 200
    receiver.close()


def test_a_stopped_server_leaves_a_whole_log_on_its_standard_output(served, tmp_path):
    with running(served.log.parent / "store", tmp_path, "--front") as server:
        for place in range(20):
            headers = {"X-Correlation-Id": f"out-{place}"}
            server.post("/predictions/activation_mlp", MLP, headers=headers)
    lines = (tmp_path / "server.log").read_text().splitlines()
    found = [json.loads(one) for one in lines if one.startswith("{")]
    assert [one["correlation_id"] for one in found][-20:] == [f"out-{i}" for i in range(20)]
