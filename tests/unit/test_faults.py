"""Errors of torch that end a worker, and those that do not; with CUDA's texts, without a GPU."""

import json
import zipfile

import numpy as np
import pytest
import torch

from handlers import torchserve
from handlers.errors import RequestError
from handlers.faults import DeviceLost, guarded, is_device_lost
from handlers.message import Request
from handlers.model import Model
from handlers.recorder import Recorder
from handlers.service import Service
from tests.unit.test_adapter import Context

ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
ASSERT = f"CUDA error: device-side assert triggered{ADVICE}"
SCRIPTED = (
    "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript "
    f'(most recent call last):\n  File "code/m.py", line 3\n    return x\nRuntimeError: {ASSERT}'
)
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.AcceleratorError(ASSERT), True),
        (RuntimeError(SCRIPTED), True),
        (torch.jit.Error(SCRIPTED), True),
        (RuntimeError(f"CUDA error: an illegal memory access was encountered{ADVICE}"), True),
        (RuntimeError("CUDA driver error: unspecified launch failure"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (RuntimeError(f"CUDA error: out of memory{ADVICE}"), False),
        (RuntimeError(f"CUDA error: invalid configuration argument{ADVICE}"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("device-side assert triggered, says the model"), False),
        (MemoryError(), False),
    ],
)
def test_what_stays_for_good(error, lost):
    assert is_device_lost(error) == lost


def test_an_error_that_is_not_known_stays_where_the_gpu_fails_again(monkeypatch):
    error = RuntimeError("CUDA error: something newer")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not is_device_lost(error)

    def fails():
        raise error

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert is_device_lost(error)


def failing():
    with guarded():
        raise torch.AcceleratorError(ASSERT)


def test_it_is_no_error_of_one_request():
    with pytest.raises(DeviceLost, match=r"^CUDA error: device-side assert triggered$"):
        failing()
    assert not issubclass(DeviceLost, Exception)


def test_too_little_memory_is_told_and_the_worker_stays():
    def runs_out():
        with guarded():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(RequestError) as told:
        runs_out()
    assert told.value.status == 507


@pytest.fixture
def model(exported, tmp_path):
    with zipfile.ZipFile(exported("elementwise").archive) as archive:
        archive.extractall(tmp_path)
    return Model(tmp_path, torch.device("cpu"))


def lost_in(monkeypatch, model, method):
    def fails(*arguments):
        raise torch.AcceleratorError(ASSERT)

    monkeypatch.setattr(model, method, fails)


@pytest.mark.parametrize("method", ["_call", "_outputs"])
def test_a_worker_that_lost_its_gpu_ends_without_an_answer(monkeypatch, model, capfd, method):
    """In the model's own call, and where an answer is fetched from the GPU."""
    adapter = torchserve.TorchServeAdapter()
    adapter._service = Service(model, Recorder(model.signature))
    ended = []

    def end(status):
        ended.append(status)
        raise SystemExit

    monkeypatch.setattr(torchserve.os, "_exit", end)
    lost_in(monkeypatch, model, method)
    body = bytearray(json.dumps(np.ones((1, 4)).tolist()).encode())
    with pytest.raises(SystemExit):
        adapter.handle([{"body": body}, {"body": body}], Context(JSON, JSON))
    assert ended == [1]
    assert "the GPU is lost to this worker" in capfd.readouterr().err


def test_the_servers_own_request_is_not_recorded(model, monkeypatch):
    recorder = Recorder(model.signature)
    recorded = []
    monkeypatch.setattr(recorder, "record", lambda *given, **facts: recorded.append(given[0]))
    service = Service(model, recorder)
    body = json.dumps(np.ones((1, 4)).tolist()).encode()
    probe = Request(body, {**JSON, "x-vitrine-probe": "1"}, "own")
    answers = service.handle([probe, Request(body, JSON, "client")])
    assert [answer.status for answer in answers] == [200, 200]
    assert recorded == ["client"]
