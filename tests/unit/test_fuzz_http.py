"""What `scripts/fuzz http` calls right and wrong."""

import io
import json
import random
from email.message import Message
from types import SimpleNamespace

import numpy as np
import pytest

from tests.fuzz_http import agrees, fault, unreadable
from tests.mutated_http import CHANGES, Sent, pictures, right

MODEL = {"name": "m", "inputs": [{"name": "x", "shape": [-1, 4]}], "outputs": [{"name": "y"}]}
FORMS = [*right(MODEL, 2, np.random.default_rng(0)), *pictures()]


def answer(status=200, media="application/json"):
    headers = Message()
    headers["content-type"] = media
    return SimpleNamespace(status=status, headers=headers)


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_leaves_something_that_can_be_sent(change):
    rng = random.Random(1)
    for sent in FORMS:
        for _ in range(5):
            changed = Sent(sent.path, sent.body, list(sent.headers))
            change(changed, rng)
            assert changed.wire().startswith(changed.method.encode())


def test_an_answer_agrees_up_to_rounding():
    known = b'{"outputs": {"y": [0.25, 1]}, "labels": {"y": "a"}}'
    assert agrees(answer(), known.replace(b"0.25", b"0.2500000001"), known)
    for wrong in (known.replace(b"0.25", b"0.26"), known.replace(b'"a"', b'"b"'), b"{}"):
        assert not agrees(answer(), wrong, known)
    assert not agrees(answer(503), known, known)


def test_files_and_bytes_agree_up_to_rounding():
    file = io.BytesIO()
    np.save(file, np.ones(3, np.float32))
    other = io.BytesIO()
    np.save(other, np.array([1, 1, 1.1], np.float32))
    assert not agrees(answer(media="application/x-npy"), other.getvalue(), file.getvalue())
    ones, near = np.ones(3, "<f4"), np.array([1, 1, 1 + 1e-6], "<f4")
    raw = answer(media="application/octet-stream")
    assert agrees(raw, near.tobytes(), ones.tobytes())
    assert not agrees(raw, (ones * 2).tobytes(), ones.tobytes())
    assert not agrees(raw, ones[:2].tobytes(), ones.tobytes())


def refusal(code="not_json", **more):
    return json.dumps({"error": {"code": code, "message": "no", **more}}).encode()


FLAT = b'{"error": "no; expected yes", "code": "not_json", "expected": "yes"}'


@pytest.mark.parametrize(
    ("path", "status", "media", "body", "right"),
    [
        ("/ping", 400, "application/json", refusal(), True),
        ("/ping", 500, "application/json", refusal("internal"), False),
        ("/ping", 400, "application/json", refusal("nobody_knows"), False),
        ("/ping", 400, "application/json", b'{"code": 400}', False),
        ("/ping", 400, "application/json", FLAT, False),
        ("/v2/x?y", 400, "application/json", FLAT, True),
        ("http://x/v2", 400, "application/json", FLAT, True),
        ("/v2", 400, "application/json", refusal(), False),
        ("/ping", 400, "text/html", b"<html>", False),
        ("/ping", 404, "text/plain", b"no", False),
    ],
)
def test_what_a_refusal_has_to_be(path, status, media, body, right):
    assert (fault(Sent(path, b""), answer(status, media), body) is None) is right


def test_what_is_no_http():
    assert not unreadable(FORMS[0])
    for sent in (Sent("/", b"", [("X", b"\x01")]), Sent("/", b"", lie=1), Sent("?", b"")):
        assert unreadable(sent)
