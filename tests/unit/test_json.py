"""JSON that readers disagree on, or choke on: read the same with and without the faster library."""

import json
import time
from contextlib import suppress

import pytest

from handlers import jsontext


@pytest.fixture(params=["orjson", "standard library"], autouse=True)
def json_library(request, monkeypatch):
    if request.param == "standard library":
        monkeypatch.setattr(jsontext, "orjson", None)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"a": 1, "a": 2}', "a"),
        ('{"a": 1, "\\u0061": 2}', "a"),
        ('{"a:b": 1, "a:b": 2}', "a:b"),
        ('{"inputs": [{"name": "x", "name": "y"}]}', "name"),
        ('{"inputs": [1, {"b": 1, "b": 2}]}', "b"),
        ('{"inputs": [[{"b": 1, "b": 2}]]}', "b"),
        ('{"id": ":", "a": {"c": null, "c": ":"}}', "c"),
        # One colon hidden by an escape, one dropped with its pair.
        ('{"id": "\\u003a", "a": 1, "a": 2}', "a"),
        ('{"id": "\\u003A", "a": 1, "a": 2}', "a"),
        ('{"id": "a\\\\", "\\ud800": 1, "\\ud800": 2}', "\ud800"),
    ],
)
def test_a_key_is_there_once(text, key):
    with pytest.raises(jsontext.RepeatedKeyError) as caught:
        jsontext.loads(text.encode())
    assert caught.value.key == key
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "document",
    [
        {"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 2}]},
        {"id": "urn:x:y", ":": ":", "l": [":", 1, {"m": ":"}], "n": [[":"], [{"o": ":"}]]},
        {"id": "\u003a \\u003a \\\\u003a"},
        [":", {"a": 1}],
        [1, {"a": 1}],
        "::",
        5,
    ],
)
def test_what_has_each_key_once_is_read(document):
    for text in (json.dumps(document), json.dumps(document).replace(":", "\\u003a", 0)):
        assert jsontext.loads(text.encode()) == document
        assert jsontext.loads(bytearray(text.encode())) == document


@pytest.mark.parametrize(
    "body", [b"\xef\xbb\xbf[1]", "[1]".encode("utf-16"), b"[\xff]", b"\xc0\x80"]
)
def test_other_charsets_are_not_json(body):
    with pytest.raises(ValueError, match=r"BOM|codec"):
        jsontext.loads(body)


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", '{"a": -Infinity}', "[nan]", "[1e5, .5]", "'a'"]
)
def test_what_python_alone_takes_is_not_json(text):
    with pytest.raises(ValueError, match=r"."):
        jsontext.loads(text.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 2_000_000,
        b'{"a":' * 500_000,
        b"[" + b"[]," * 500_000 + b"[]]",
        b"[" + b'{"a":1},' * 200_000 + b"1]",
        b'["' + b":" * 2_000_000 + b'"]',
        b"1" * 1_000_000,
        b'{"' + b"k" * 2_000_000 + b'":1,"' + b"k" * 2_000_000 + b'":2}',
    ],
)
def test_huge_and_hostile_bodies_take_seconds_at_most(body):
    started = time.monotonic()
    with suppress(ValueError, RecursionError):
        jsontext.loads(body)
    assert time.monotonic() - started < 10
