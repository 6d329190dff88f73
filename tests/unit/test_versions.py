"""Which version answers where none is named: chosen at the start, kept, switched."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from server.__main__ import main
from server.archives import Archive
from server.errors import UsageError
from server.state import State
from server.versions import (
    DEFAULTS_FILE,
    Share,
    arranged,
    keep_default,
    parse_defaults,
    parse_share,
    read_defaults,
)

ARCHIVES = [
    Archive(Path(f"{name}-{version}.mar"), name, version)
    for name, version in (("b", "1.9"), ("b", "1.10"), ("a", "1.0"), ("b", "beta"))
]


def order(kept=None, wanted=None):
    return [(one.name, one.version) for one in arranged(ARCHIVES, kept or {}, wanted or {})]


def test_the_highest_version_is_loaded_first():
    assert order() == [("b", "1.10"), ("b", "1.9"), ("b", "beta"), ("a", "1.0")]


def test_what_the_store_keeps_goes_before_that_and_the_command_line_before_both():
    assert order({"b": "1.9", "gone": "1"})[:2] == [("b", "1.9"), ("b", "1.10")]
    assert order({"b": "1.9"}, {"b": "beta"})[:2] == [("b", "beta"), ("b", "1.10")]


@pytest.mark.parametrize(
    ("kept", "wanted", "told"),
    [
        ({"b": "3"}, {}, r"defaults\.json .* 3 .* there is: 1\.10, 1\.9, beta"),
        ({}, {"b": "3"}, r"--default .* there is: 1\.10"),
        ({}, {"c": "1"}, r"'c'.* there is: a, b"),
    ],
)
def test_a_default_that_is_not_served_is_refused(kept, wanted, told):
    with pytest.raises(UsageError, match=told):
        order(kept, wanted)


@pytest.mark.parametrize("texts", [["m"], ["=1"], ["m="], ["m=1", "m=2"]])
def test_a_default_that_is_not_understood(texts):
    with pytest.raises(UsageError, match="--default"):
        parse_defaults(texts)
    assert parse_defaults(["m=1.0", "n=2"]) == {"m": "1.0", "n": "2"}


def test_a_share_for_one_version():
    assert parse_share("b=1.9:10", ARCHIVES) == parse_share("b=1.9:10%", ARCHIVES)
    assert parse_share("b=1.9:10", ARCHIVES) == Share("b", "1.9", 10)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("b", "not of the form"),
        ("b=1.9", "not of the form"),
        ("b=1.9:101", "0 to 100"),
        ("b=1.9:-1", "0 to 100"),
        ("b=1.8:10", "there is: a=1.0, b=1.10, b=1.9, b=beta"),
    ],
)
def test_a_share_that_cannot_be_given(text, told):
    with pytest.raises(UsageError, match=told):
        parse_share(text, ARCHIVES)


def test_the_store_keeps_defaults(tmp_path):
    assert read_defaults(tmp_path) == {}
    keep_default(tmp_path, "m", "1.0")
    keep_default(tmp_path, "n", "2.0")
    keep_default(tmp_path, "m", "3.0")
    assert read_defaults(tmp_path) == {"m": "3.0", "n": "2.0"}
    assert [path.name for path in tmp_path.iterdir()] == [DEFAULTS_FILE]
    for text in ("{", "[]", '{"m": 1}'):
        (tmp_path / DEFAULTS_FILE).write_text(text)
        with pytest.raises(UsageError, match=DEFAULTS_FILE):
            read_defaults(tmp_path)


class Management(BaseHTTPRequestHandler):
    """Knows model m in two versions, of which 3.0 has no worker."""

    default = "1.0"

    def do_GET(self):
        versions = ["1.0", "2.0", "3.0"] if self.path.endswith("/all") else [self.default]
        known = self.path.startswith("/models/m")
        workers = {"3.0": []}
        ready = [{"id": "1", "pid": 1, "status": "READY"}]
        self.answer(
            200 if known else 404,
            [
                {"modelVersion": one, "minWorkers": 1, "workers": workers.get(one, ready)}
                for one in versions
            ],
        )

    def do_PUT(self):
        _, _, _, version, action = self.path.split("/")
        assert action == "set-default"
        type(self).default = version
        self.answer(200, {})

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def state(tmp_path):
    Management.default = "1.0"
    with HTTPServer(("127.0.0.1", 0), Management) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        path = tmp_path / "state.json"
        (tmp_path / "store").mkdir()
        url = f"http://127.0.0.1:{server.server_port}"
        State(1, "", url, "", ["m"], store=str(tmp_path / "store")).write(path)
        yield path
        server.shutdown()
        thread.join()


def test_the_default_is_told_and_switched(state, capsys):
    assert main(["default", "m", "--state", str(state)]) == 0
    assert capsys.readouterr().out == "m: 1.0 is the default; beside it: 2.0, 3.0\n"
    assert main(["default", "m", "2.0", "--state", str(state)]) == 0
    assert "2.0 is the default" in capsys.readouterr().out
    assert read_defaults(state.parent / "store") == {}
    assert main(["default", "m", "1.0", "--keep", "--state", str(state)]) == 0
    assert read_defaults(state.parent / "store") == {"m": "1.0"}


@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        (["none"], 2, "no model 'none'"),
        (["m", "4.0"], 2, "has no version 4.0; there is: 1.0, 2.0, 3.0"),
        (["m", "3.0", "--keep"], 1, "not ready (0 of 1 workers ready)"),
    ],
)
def test_what_cannot_be_the_default_stays_what_it_was(state, capsys, asked, code, told):
    assert main(["default", *asked, "--state", str(state)]) == code
    assert told in capsys.readouterr().err
    assert Management.default == "1.0"
    assert read_defaults(state.parent / "store") == {}


def test_a_server_that_is_not_there(tmp_path, capsys):
    path = tmp_path / "state.json"
    assert main(["default", "m", "--state", str(path)]) == 2
    State(1, "", "http://127.0.0.1:1", "", ["m"]).write(path)
    assert main(["default", "m", "--state", str(path)]) == 2
    assert "is the server running?" in capsys.readouterr().err
