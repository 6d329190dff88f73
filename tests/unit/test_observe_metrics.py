"""What Prometheus scrapes of an activation log."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.drifting.inputs import strange
from benchmarks.drifting.subject import Subject
from observe.baselines import Baselines
from observe.drift import drift
from observe.index import Index
from observe.lines import decode
from observe.metrics import exposition
from observe.outliers import count_unusual
from observe.queries import Window
from observe.reader import Reader, State
from tests.drifting import indexed, unseen

STATE = State(7, {}, 0, 10, 20, None, 1)


@pytest.fixture(scope="module")
def digits(exported):
    return Subject(exported("digits").archive)


def samples(text):
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    assert len(found) == len(lines)
    return found


def test_it_tells_what_drift_and_outliers_tell(digits):
    for images, alarm in ((unseen(), 0), (strange("shifted", unseen()), 1)):
        index = indexed(digits.lines(images))
        found = samples(exposition(index, STATE, Baselines(None, {"digits": digits.baseline})))
        owner = 'model="digits",version="1.0"'
        assert found[f"vitrine_drift_alarm{{{owner}}}"] == alarm
        window = Window("digits", "1.0")
        assert found[f"vitrine_outlier_requests{{{owner}}}"] == count_unusual(
            index, window, digits.baseline, 500
        )
        for layer in drift(index, window, digits.baseline):
            for one in layer.distances:
                labels = f'{{{owner},layer="{layer.key}",statistic="{one.statistic}"}}'
                assert found[f"vitrine_drift_distance{labels}"] == pytest.approx(one.distance)
                assert found[f"vitrine_drift_threshold{labels}"] == pytest.approx(one.threshold)
        assert sum(name.startswith("vitrine_drift_distance") for name in found) == 20


def test_without_a_baseline_it_tells_how_far_the_log_was_read(digits, tmp_path):
    (tmp_path / "digits.jsonl").write_bytes(
        b"".join(line + b"\n" for line in digits.lines(unseen()[:5])) + b"nonsense\n{}\n{}\n"
    )
    index = Index()
    reader = Reader(tmp_path / "digits.jsonl", index)
    before = samples(exposition(index, reader.state(), Baselines()))
    size = (tmp_path / "digits.jsonl").stat().st_size
    assert before == {
        "vitrine_observe_records": 0,
        "vitrine_observe_read_bytes": 0,
        "vitrine_observe_found_bytes": size,
    }
    reader.read_all()
    assert samples(exposition(index, reader.state(), Baselines())) == {
        "vitrine_observe_records": 5,
        'vitrine_observe_skipped_lines_total{reason="not JSON"}': 1,
        'vitrine_observe_skipped_lines_total{reason="no activation record"}': 2,
        "vitrine_observe_read_bytes": size,
        "vitrine_observe_found_bytes": size,
    }


def test_a_version_that_no_longer_answers_is_left_out(digits):
    columns = digits.records(strange("shifted", unseen()))
    newer = [json.loads(line) for line in digits.lines(unseen())]
    for line in newer:
        line |= {"time": line["time"].replace("2026-01-01", "2026-01-03"), "model_version": "2.0"}
    index = Index()
    index.add(columns)
    index.add(decode([json.dumps(line).encode() for line in newer]))
    baselines = Baselines(None, {"digits": digits.baseline})
    found = samples(exposition(index, STATE, baselines))
    assert {name: value for name, value in found.items() if "alarm" in name} == {
        'vitrine_drift_alarm{model="digits",version="2.0"}': 0
    }


def test_names_from_the_log_cannot_break_the_text(digits):
    name = 'a"\\\n} 1\nevil 2'
    lines = [json.loads(line) | {"model": name} for line in digits.lines(unseen())]
    index = indexed(json.dumps(line).encode() for line in lines)
    text = exposition(index, STATE, Baselines(None, {name: digits.baseline}))
    assert "\nevil" not in text
    assert 'vitrine_drift_alarm{model="a\\"\\\\\\n} 1\\nevil 2",version="1.0"} 0' in text
    for line in text.splitlines():
        assert re.fullmatch(r'# .*|vitrine_\w+(\{(\w+="([^"\\\n]|\\.)*",?)*\})? \S+', line), line


def test_a_baseline_of_before_there_were_scores_tells_drift_alone(digits):
    old = replace(digits.baseline, score=None)
    index = indexed(digits.lines(unseen()))
    found = exposition(index, STATE, Baselines(None, {"digits": old}))
    assert "vitrine_drift_alarm" in found
    assert "vitrine_outlier" not in found


def test_promtool_accepts_it(digits):
    if shutil.which("promtool") is None:
        pytest.skip("no promtool")
    index = indexed(digits.lines(unseen()))
    state = replace(STATE, skipped={"not JSON": 3})
    text = exposition(index, state, Baselines(None, {"digits": digits.baseline}))
    assert np.all([value >= 0 for value in samples(text).values()])
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
