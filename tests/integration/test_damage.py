"""A damaged archive beside a sound one: named and left out, and the other is served."""

import os
import shutil
import zipfile

import pytest
import requests

from tests.integration.conftest import running

if os.environ.get("VITRINE_URL"):
    pytest.skip("starts a server of its own", allow_module_level=True)


def test_one_flipped_byte_leaves_one_model_out(exported, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    for name in ("two_inputs", "branch", "token_lstm"):
        shutil.copy(exported(name).archive, store)
    path = store / "branch.mar"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("model.pt")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 1000 + info.file_size // 2] ^= 1
    path.write_bytes(content)
    cut = store / "token_lstm.mar"
    cut.write_bytes(cut.read_bytes()[:-100])
    with running(store, tmp_path) as server:
        listed = requests.get(f"{server.management}/models", timeout=10).json()["models"]
        assert [model["modelName"] for model in listed] == ["two_inputs"]
        assert requests.get(f"{server.url}/ping", timeout=10).status_code == 200
        left_out = 503 if shutil.which("haproxy") else 404
        for name in ("branch", "token_lstm"):
            assert server.post(f"/predictions/{name}", [1, 2]).status_code == left_out
        described = requests.get(f"{server.management}/models/two_inputs", timeout=10).json()
        assert described[0]["workers"][0]["status"] == "READY"
    log = (tmp_path / "server.log").read_text()
    assert "Left out: " in log
    assert "branch.mar is damaged: model.pt" in log
    assert "token_lstm.mar is not a readable model archive" in log
