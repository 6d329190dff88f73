"""Requests are recorded as they were sent, for a file that only the server can read."""

import json
import os
import zipfile

import numpy as np
import pytest
import torch

from formats.document import FormatError
from formats.recording import Recording, Tensor
from formats.signature import Signature, TensorSpec
from handlers.log_settings import LogSettings
from handlers.model import Model
from handlers.recorded import RequestRecording
from handlers.recording_settings import RecordingSettings
from handlers.service import Request, Service

SIGNATURE = Signature(
    "m", "2.0", "", (TensorSpec("x", "float32", (-1,)),), (TensorSpec("y", "float32", (-1,)),), True
)
BODY = json.dumps([0.5] * 16).encode()


def settings(folder, **changes):
    return RecordingSettings(**{"mode": "sampled", "rate": 1.0, "folder": folder, **changes})


def read(path):
    return [Recording.parse(line) for line in path.read_bytes().splitlines()]


def test_a_line_becomes_what_it_was():
    for body in (b'{"inputs": [1]}', bytes(range(256)), b""):
        record = Recording(
            time="2026-01-31T12:00:00.123Z",
            model="m",
            model_version="1.0",
            request_id="i",
            headers={"content-type": "application/json"},
            body=body,
            outputs=(Tensor("y", "float32", (1, 2), bytes(8)),),
            error=None,
        )
        assert Recording.parse(json.dumps(record.to_json()).encode()) == record


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_a_line_that_is_cut_short_is_refused(keep):
    record = Recording("t", "m", "1.0", "i", {}, b"{}", (), "internal")
    line = json.dumps(record.to_json()).encode()
    with pytest.raises(FormatError):
        Recording.parse(line[: int(len(line) * keep)])


@pytest.mark.parametrize(
    "change",
    [
        {"format": "vitrine.activation"},
        {"version": 2},
        {"model": 1},
        {"headers": {"content-type": 1}},
        {"headers": []},
        {"body": None},
        {"outputs": [{"name": "y"}]},
        {"outputs": [{"name": "y", "dtype": "float32", "shape": [1], "base64": "?"}]},
        {"error": 4},
    ],
)
def test_another_document_is_refused(change):
    record = Recording("t", "m", "1.0", "i", {}, b"{}", (), None)
    with pytest.raises(FormatError):
        Recording.parse(json.dumps(record.to_json() | change).encode())


def test_requests_are_recorded_with_their_answers(exported, tmp_path):
    with zipfile.ZipFile(exported("activation_mlp").archive) as archive:
        archive.extractall(tmp_path / "model")
    model = Model(tmp_path / "model", torch.device("cpu"))
    recording = RequestRecording(model.signature, settings(tmp_path / "kept"))
    service = Service(model, recording=recording)
    secret = {"content-type": "application/json", "authorization": "mine", "cookie": "mine"}
    raw = np.ones((2, 16), np.float32).tobytes()
    answers = service.handle(
        [
            Request(BODY, secret, "one"),
            Request(b"{", secret, "two"),
            Request(raw, {"content-type": "application/octet-stream"}, "three"),
            Request(BODY, {"x-explain": "saliency"}, "four"),
        ]
    )
    recording.close()
    path = tmp_path / "kept" / "activation_mlp.jsonl"
    one, two, three = read(path)
    assert (one.request_id, one.model, one.model_version) == ("one", "activation_mlp", "1.0")
    assert (one.body, dict(one.headers)) == (BODY, {"content-type": "application/json"})
    [output] = one.outputs
    kept = np.frombuffer(output.data, output.dtype).reshape(output.shape)
    np.testing.assert_array_equal(
        kept[0], np.float32(json.loads(answers[0].body)["outputs"]["scores"])
    )
    assert (two.error, two.body, two.outputs) == ("not_json", b"{", ())
    assert (three.body, three.outputs[0].shape) == (raw, (2, 4))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_others_can_read_is_closed_to_them(tmp_path):
    path = tmp_path / "m.jsonl"
    path.touch(0o644)
    recording = RequestRecording(SIGNATURE, settings(tmp_path))
    recording.record("i", {}, b"{}", [], "not_json")
    recording.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read(path)) == 1


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "theirs").write_text("mine\n")
    (tmp_path / "m.jsonl").symlink_to(tmp_path / "theirs")
    recording = RequestRecording(SIGNATURE, settings(tmp_path))
    recording.record("i", {}, b"{}", [], "not_json")
    recording.close()
    assert recording.counts().dropped["io_error"] == 1
    assert (tmp_path / "theirs").read_text() == "mine\n"


def test_it_is_off_by_default_and_ends_by_itself(tmp_path):
    off = RequestRecording(SIGNATURE)
    assert not any(off.picks() for _ in range(100))
    off.record("i", {}, b"{}", [], None)
    assert off.counts().sent == off.counts().total_dropped == 0
    few = RequestRecording(SIGNATURE, settings(tmp_path, most=3))
    for number in range(10):
        if few.picks():
            few.record(str(number), {}, b"{}", [], None)
    few.close()
    assert [one.request_id for one in read(tmp_path / "m.jsonl")] == ["0", "1", "2"]


def test_a_part_is_sampled(tmp_path):
    recording = RequestRecording(SIGNATURE, settings(tmp_path, rate=0.1))
    assert 50 < sum(recording.picks() for _ in range(1000)) < 200
    recording.close()


def test_the_files_are_bounded(tmp_path):
    recording = RequestRecording(SIGNATURE, settings(tmp_path, max_bytes=2000, keep=1))
    for number in range(60):
        recording.record(str(number), {}, b"x" * 100, [], None)
    recording.close()
    assert sorted(os.listdir(tmp_path)) == ["m.1.jsonl", "m.jsonl"]
    for path in tmp_path.iterdir():
        assert path.stat().st_size <= 2000
        assert path.stat().st_mode & 0o777 == 0o600
    assert read(tmp_path / "m.jsonl")[-1].request_id == "59"


def test_a_request_that_is_too_large_is_dropped_and_counted(tmp_path):
    recording = RequestRecording(SIGNATURE, settings(tmp_path))
    recording.record("large", {}, b"x" * (64 << 20), [], None)
    recording.record("small", {}, b"x", [], None)
    recording.close()
    assert recording.counts().dropped["too_large"] == 1
    assert [(sample.name, sample.value) for sample in recording.take_samples()] == [
        ("vitrine_recorded_requests_written", 1),
        ("vitrine_recorded_requests_dropped", 1),
    ]
    assert recording.take_samples() == []
    assert [one.request_id for one in read(tmp_path / "m.jsonl")] == ["small"]


def test_settings_come_from_the_archive_and_before_that_from_the_environment():
    section = {"mode": "sampled", "folder": "/a", "rate": 0.5, "most": 7}
    found = RecordingSettings.from_config(section, {"VITRINE_RECORDING_RATE": "1"})
    assert (found.mode, str(found.folder), found.rate, found.most) == ("sampled", "/a", 1.0, 7)
    assert found.limits.private
    assert not LogSettings().limits.private
    assert RecordingSettings.from_config(None, {}).mode == "off"


@pytest.mark.parametrize(
    ("section", "environ", "told"),
    [
        ({"mode": "all"}, {}, "recording.mode is 'all'; expected off or sampled"),
        ({}, {"VITRINE_RECORDING": "sampled"}, "VITRINE_RECORDING_DIR"),
        ({"folder": "here"}, {}, "an absolute path"),
        ({"most": -1}, {}, "recording.most"),
        ({"speed": 1}, {}, "recording.speed is not a setting"),
        ([], {}, "expected settings by name"),
    ],
)
def test_wrong_settings_are_named(section, environ, told):
    with pytest.raises(ValueError, match=told):
        RecordingSettings.from_config(section, environ)
