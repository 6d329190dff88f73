import json
import subprocess
import sys

import pytest

from server import tracing as module
from server.errors import UsageError
from server.tracing import Sampler, Tracing, check_tracing, tracing, wanted
from tests.conftest import ROOT

LOW, HIGH = "f" * 16 + "0" * 15 + "1", "0" * 16 + "f" * 16
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


def record(**changes):
    return {"trace_id": None, "parent_id": None, "span_id": None, "sampled": False} | changes


@pytest.mark.parametrize(
    ("name", "ratio", "alone", "told_yes", "told_no"),
    [
        # Of the ids LOW and HIGH, the lower is sampled at a half.
        ("always_on", 0.5, (True, True), True, True),
        ("always_off", 0.5, (False, False), False, False),
        ("traceidratio", 0.5, (True, False), False, False),
        ("traceidratio", 1.0, (True, True), True, True),
        ("traceidratio", 0.0, (False, False), False, False),
        ("parentbased_always_on", 0.5, (True, True), True, False),
        ("parentbased_always_off", 0.5, (False, False), True, False),
        ("parentbased_traceidratio", 0.5, (True, False), True, False),
    ],
)
def test_samplers_decide_as_their_names_say(name, ratio, alone, told_yes, told_no):
    sampler = Sampler(name, ratio)
    assert (sampler.samples(LOW, None), sampler.samples(HIGH, None)) == alone
    assert sampler.samples(HIGH, True) == told_yes
    assert sampler.samples(HIGH, False) == told_no


def test_nothing_is_traced_unless_it_is_asked_for():
    assert not wanted({})
    assert wanted(ENDPOINT)
    assert wanted({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"})
    assert not wanted(ENDPOINT | {"OTEL_SDK_DISABLED": "true"})
    assert not wanted(ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"})
    assert tracing({}) is None
    check_tracing({"OTEL_TRACES_SAMPLER": "anything"})


def test_who_does_not_trace_imports_nothing_of_it():
    code = (
        "import sys, server.observe\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"OTEL_TRACES_SAMPLER": "often"}, "OTEL_TRACES_SAMPLER is 'often'; expected one of"),
        ({"OTEL_TRACES_SAMPLER_ARG": "2"}, "OTEL_TRACES_SAMPLER_ARG is '2'; expected a number"),
        ({"OTEL_TRACES_SAMPLER_ARG": "nan"}, "OTEL_TRACES_SAMPLER_ARG is 'nan'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_understood_is_named(changes, told, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    check_tracing(ENDPOINT)
    with pytest.raises(UsageError, match=told):
        check_tracing(ENDPOINT | changes)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"opentelemetry\.sdk is missing: install requirements"):
        check_tracing(ENDPOINT)


def test_sampled_requests_are_handed_on_with_their_ids(tmp_path):
    there = tmp_path / "lines"
    code = f"import sys; open({str(there)!r}, 'wb').write(sys.stdin.buffer.read())"
    traces = Tracing(Sampler("parentbased_traceidratio", 1.0), [sys.executable, "-c", code])
    mine = record(trace_id=HIGH, parent_id="1" * 16, sampled=True)
    refused, new = record(trace_id=HIGH, sampled=False), record()
    traces.give([mine, refused, new])
    traces.close()
    assert [json.loads(one) for one in there.read_bytes().splitlines()] == [mine, new]
    assert (traces.given, traces.dropped) == (2, 0)
    assert mine["trace_id"] == HIGH
    assert len(mine["span_id"]) == 16
    assert len(new["trace_id"]) == 32
    assert (refused["span_id"], refused["sampled"]) == (None, False)


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "raise SystemExit"])
def test_an_exporter_that_hangs_or_is_gone_delays_nobody(code, monkeypatch):
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.2)
    traces = Tracing(Sampler("always_on"), [sys.executable, "-c", code])
    sent = 40_000
    for _ in range(sent // 100):
        traces.give([record() for _ in range(100)])
    assert traces.dropped > sent / 4
    assert traces.given + traces.dropped == sent
    traces.close()
