"""What is logged and measured of requests that were answered."""

import json
import re
import time
import zipfile

import pytest
import torch

from handlers.log_settings import LogSettings
from handlers.model import Model
from handlers.recorder import Recorder
from handlers.service import Request, Service
from handlers.torchserve import _label, _plain
from handlers.units import UnitWatch


@pytest.fixture
def served(exported, tmp_path):
    """A service with a log in some mode; closed at the end."""
    made = []
    with zipfile.ZipFile(exported("activation_mlp").archive) as archive:
        archive.extractall(tmp_path / "model")
    model = Model(tmp_path / "model", torch.device("cpu"))

    def make(**settings):
        log = LogSettings(folder=tmp_path / "log", **settings)
        recorder = Recorder(model.signature, log)
        made.append(recorder)
        return Service(model, recorder), recorder

    yield make
    for recorder in made:
        recorder.close()


def lines(recorder, tmp_path, count):
    deadline = time.monotonic() + 20
    path = tmp_path / "log" / "activation_mlp.jsonl"
    while time.monotonic() < deadline:
        if path.exists():
            found = [json.loads(line) for line in path.read_text().splitlines()]
            if len(found) >= count:
                return found
        time.sleep(0.01)
    pytest.fail(f"fewer than {count} records were written")


BODY = json.dumps([0.5] * 16).encode()
ASKING = {"x-activations": "stats", "traceparent": "00-ab-cd-01", "x-correlation-id": "mine"}


def test_those_who_ask_are_logged_with_their_identifiers(served, tmp_path):
    service, recorder = served(mode="asked")
    service.handle([Request(BODY, {}, "quiet"), Request(BODY, ASKING, "loud")])
    [record] = lines(recorder, tmp_path, 1)
    assert record["request_id"] == "loud"
    assert (record["traceparent"], record["correlation_id"]) == ("00-ab-cd-01", "mine")
    assert (record["reason"], record["rows"]) == ("asked", 1)
    assert "block.1" in record["layers"]
    assert "0.5" not in json.dumps(record["layers"].get("input", ""))


def test_sampling_measures_requests_that_do_not_ask_and_leaves_their_answer(served, tmp_path):
    service, recorder = served(mode="sampled", rate=1.0)
    [answer] = service.handle([Request(BODY, {}, "one")])
    assert set(json.loads(answer.body)) == {"outputs"}
    [record] = lines(recorder, tmp_path, 1)
    assert record["reason"] == "sampled"
    assert "block.1" in record["layers"]


def test_errors_are_logged_by_code_and_never_with_their_input(served, tmp_path):
    service, recorder = served(mode="sampled", rate=0.0)
    service.handle([Request(b'{"inputs": "secret"}', {}, "bad"), Request(BODY, {}, "good")])
    [record] = lines(recorder, tmp_path, 1)
    assert (record["reason"], record["error"], record["request_id"]) == (
        "error",
        "wrong_type",
        "bad",
    )
    assert "secret" not in json.dumps(record)


def test_off_writes_nothing_and_measures_nobody(served, tmp_path, monkeypatch):
    service, _ = served(mode="off")
    service.handle([Request(BODY, ASKING, "loud")])
    monkeypatch.setattr(Model, "observe", None)
    service.handle([Request(BODY, {}, "quiet")])
    assert not (tmp_path / "log").exists()


def test_metrics_tell_of_layers_and_of_records(served, tmp_path):
    service, recorder = served(mode="asked")
    service.handle([Request(BODY, ASKING, "loud")])
    lines(recorder, tmp_path, 1)
    samples = {(s.name, s.labels.get("Layer")): s for s in recorder.take_samples()}
    assert samples["vitrine_activation_records_written", None].value == 1
    fraction = samples["vitrine_activation_zero_fraction", "block.1"]
    assert 0 <= fraction.value <= 1
    assert not fraction.counter
    assert recorder.take_samples() == []


def test_gauges_are_told_once_a_second_and_counters_at_once(served, monkeypatch):
    service, recorder = served(mode="off")
    clock = [100.0]
    monkeypatch.setattr("handlers.recorder.time.monotonic", lambda: clock[0])

    def told(request_id):
        service.handle([Request(BODY, ASKING, request_id)])
        recorder._sample("vitrine_activation_non_finite", 2, "block.1", counter=True)
        return {sample.name: sample.value for sample in recorder.take_samples()}

    assert {"vitrine_activation_mean", "vitrine_activation_non_finite"} <= told("first").keys()
    clock[0] += 0.9
    assert told("second") == {"vitrine_activation_non_finite": 2}
    clock[0] += 0.2
    assert "vitrine_activation_mean" in told("third")


@pytest.mark.parametrize(("value", "written"), [(1e20, 1e20), (-3.5e300, -3.5e300), (0.1, 0.1)])
def test_torchserve_reads_every_metric(value, written):
    """What Metric.java accepts: no "+" in a number, no colon, comma or bar in a label."""
    text = str(_plain(value))
    assert re.fullmatch(r"[0-9\-,.e]+", text)
    assert float(text) == written
    assert _label("blocks.0.relu@1:out|a,b") == "blocks.0.relu@1/out_a_b"


def test_a_batch_is_told_once_for_each_layer(served, tmp_path):
    service, recorder = served(mode="asked")
    service.handle([Request(BODY, ASKING, str(number)) for number in range(5)])
    lines(recorder, tmp_path, 5)
    names = [(s.name, s.labels.get("Layer")) for s in recorder.take_samples()]
    assert len(names) == len(set(names))


def test_which_units_fire_is_logged_once_enough_rows_were_seen_and_at_the_end(served, tmp_path):
    service, recorder = served(mode="asked")
    service.units = UnitWatch(service._model.layers, lambda: 0.0)  # looking takes no time
    body = json.dumps(torch.randn(40, 16).tolist()).encode()
    for number in range(6):
        service.handle([Request(body, ASKING, str(number))])
    recorder.close()
    found = lines(recorder, tmp_path, 8)
    kinds = [one["format"].removeprefix("vitrine.") for one in found]
    assert kinds == ["activation"] * 4 + ["units"] + ["activation"] * 2 + ["units"]
    first, last = (one["layers"]["block.1"] for one in found if "worker" in one)
    assert (first["rows"], last["rows"]) == (200, 240)
    assert len(last["active"]) == last["units"] == 32
    assert last == {**service.units.report()["block.1"], "active": last["active"]}
    assert {one["worker"] for one in found if "worker" in one} == {recorder._units._worker}
