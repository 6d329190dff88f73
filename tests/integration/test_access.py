"""A front that asks for keys and speaks TLS: who gets through, and what is reached."""

import itertools
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import zipfile
from contextlib import ExitStack, closing, suppress
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from server.config import DEFAULT_CONFIG
from tests.conftest import ROOT
from tests.errors import told
from tests.integration.conftest import running
from tests.readme import run_page

if os.environ.get("VITRINE_URL"):
    pytest.skip("starts a server of its own", allow_module_level=True)
pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="no haproxy: nothing else asks for keys"
)
ALL, ONE, LATER = (f"{name}-key-0123456789" for name in ("all", "one", "later"))
KEYS = f"all: {ALL}\none: {ONE} echo\n"
# A handler that answers what it was sent.
ECHO = """
import json

def handle(data, context):
    if data is None:
        return None
    seen = {name.lower(): str(value) for name, value in context.get_all_request_header(0).items()}
    body = data[0].get("body", b"")
    text = body if isinstance(body, str) else bytes(body).decode("latin-1")
    return [json.dumps({"headers": seen, "body": text})]
"""
TEXT = {"content-type": "text/plain"}


class Guarded:
    """A server with keys and TLS, its files, and what it printed."""

    def __init__(self, folder, server):
        self.folder, self.url, self.management = folder, server.url, server.management
        self.keys, self.certificate = folder / "keys.txt", folder / "tls.pem"
        self.place = (urlsplit(server.url).hostname, urlsplit(server.url).port)

    def ask(self, path, key=None, *, method="GET", headers=(), **options):
        sent = {"authorization": f"Bearer {key}"} if key else {}
        return requests.request(
            method,
            f"{self.url}{path}",
            headers=sent | dict(headers),
            verify=self.certificate,
            timeout=30,
            **options,
        )

    def send(self, model, key=None, *, headers=(), data="hello"):
        headers = TEXT | dict(headers)
        return self.ask(f"/predictions/{model}", key, method="POST", headers=headers, data=data)

    def raw(self, *parts):
        """Send bytes; return what comes back until the server closes or says nothing more."""
        context = ssl.create_default_context(cafile=self.certificate)
        with (
            closing(socket.create_connection(self.place, timeout=10)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            for part in parts:
                client.sendall(part)
            client.settimeout(1)
            received = b""
            try:
                while chunk := client.recv(65536):
                    received += chunk
            except (TimeoutError, ConnectionResetError, ssl.SSLError):
                pass
            return received

    def printed(self):
        return (self.folder / "server.log").read_text()


def make_certificate(path):
    key = path.with_suffix(".new")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x"
    certificate = subprocess.run(
        [*command.split(), "-keyout", key, "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    path.write_text(certificate + key.read_text())
    key.unlink()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, exported):
    folder = tmp_path_factory.mktemp("guarded")
    store = folder / "store"
    store.mkdir()
    for name in ("echo", "other"):
        with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
            model = {"modelName": name, "modelVersion": "1.0", "handler": "h.py"}
            manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            archive.writestr("h.py", ECHO)
    for path in exported("activation_mlp").archive.parent.glob("activation_mlp.*"):
        shutil.copy(path, store)
    (folder / "keys.txt").write_text(KEYS)
    make_certificate(folder / "tls.pem")
    keys, certificate = str(folder / "keys.txt"), str(folder / "tls.pem")
    with running(store, folder, "--front", "--api-keys", keys, "--tls", certificate) as server:
        yield Guarded(folder, server)


def refused(answer, status, code):
    assert answer.status_code == status, answer.text
    parts = told(answer.url, answer.json())
    assert parts["code"] == code
    return parts


def wait(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# Keys

MODEL_PATHS = [
    "/predictions/{}",
    "/predictions/{}/1.0",
    "/explanations/{}",
    "/v1/models/{}:predict",
    "/v2/models/{}/infer",
    "/v2/models/{}/versions/1.0/infer",
    "/models/{}/invoke",
]


@pytest.mark.parametrize("path", [*MODEL_PATHS, "/invocations", "/models", "/nothing"])
def test_without_a_key_that_is_known_nothing_is_answered(guarded, path):
    path = path.format("echo")
    for headers in (
        {},
        {"authorization": "Bearer " + ALL[:-1]},
        {"authorization": "Bearer"},
        {"authorization": "Basic " + ALL},
        {"authorization": ALL},
        {"x-api-key": ALL.upper()},
        {"x-api-key": ""},
        {"x-vitrine-models": "echo"},
    ):
        answer = guarded.ask(path, method="POST", headers=TEXT | headers, data="hello")
        parts = refused(answer, 401, "unauthenticated")
        assert parts["expected"] == "the header Authorization: Bearer KEY"
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/v2", "/v1/models", "/v2/models/echo", "/openapi.json"])
def test_what_is_served_is_told_with_a_key_only(guarded, path):
    refused(guarded.ask(path), 401, "unauthenticated")
    assert guarded.ask(path, ALL).ok


@pytest.mark.parametrize("path", ["/ping", "/v2/health/live", "/v2/health/ready"])
def test_probes_need_no_key(guarded, path):
    assert guarded.ask(path).ok
    assert guarded.ask(path, "not-a-key-of-anybody").ok


def test_a_key_comes_in_either_header_and_goes_no_further(guarded):
    for headers in (
        {"authorization": f"Bearer {ALL}"},
        {"authorization": f"bearer  {ALL}"},
        {"x-api-key": ALL},
        {"x-api-key": "no", "authorization": f"Bearer {ALL}"},
    ):
        answer = guarded.send("echo", headers=headers)
        assert answer.json()["body"] == "hello"
        assert not {"authorization", "x-api-key"} & set(answer.json()["headers"])
        assert ALL not in answer.text


@pytest.mark.parametrize("path", MODEL_PATHS)
def test_a_key_for_one_model_is_not_for_another(guarded, path):
    asked = guarded.ask(path.format("echo"), ONE, method="POST", headers=TEXT, data="hello")
    assert asked.status_code == 200
    for name in ("other", "%6fther", "..%2fother"):
        answer = guarded.ask(path.format(name), ONE, method="POST", headers=TEXT, data="hello")
        refused(answer, 403, "forbidden")
    # No model has a version called "..", or such a name.
    for name in ("echo%2f..%2fother", "echo%00"):
        answer = guarded.ask(path.format(name), ONE, method="POST", headers=TEXT, data="hello")
        assert answer.status_code == 404


def test_what_a_key_for_one_model_may_ask_about(guarded):
    for path in (
        "/v2/models/echo",
        "/v2/models/echo/ready",
        "/v1/models/echo",
        "/v1/models",
        "/v2",
    ):
        assert guarded.ask(path, ONE).ok
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v1/models/other", "/invocations"):
        refused(guarded.ask(path, ONE), 403, "forbidden")


def test_keys_are_nowhere_to_be_read(guarded):
    guarded.send("echo", ALL)
    assert ALL not in guarded.printed()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for pid, name in itertools.product(pids, ("cmdline", "environ")):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                assert ALL.encode() not in file.read()
        except OSError:
            continue


def test_keys_change_while_the_server_runs(guarded, tmp_path):
    def status(key):
        return guarded.send("echo", key).status_code

    try:
        guarded.keys.write_text(KEYS + f"later: {LATER}\n")
        wait(lambda: status(LATER) == 200)
        assert (status(ALL), status(ONE)) == (200, 200)
        # As secrets are mounted: a link to a file in a folder that is a link.
        for name, text in (("a", KEYS), ("b", LATER)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "keys").write_text(text)
        (tmp_path / "now").symlink_to("a")
        guarded.keys.unlink()
        guarded.keys.symlink_to(tmp_path / "now" / "keys")
        wait(lambda: status(LATER) == 401)
        (tmp_path / "next").symlink_to("b")
        (tmp_path / "next").replace(tmp_path / "now")
        wait(lambda: status(LATER) == 200)
        assert (status(ALL), status(ONE)) == (401, 401)
        (tmp_path / "b" / "keys").write_text("too-short\n")
        wait(lambda: "line 1: the key has 9 characters" in guarded.printed())
        assert status(LATER) == 200
    finally:
        guarded.keys.unlink()
        guarded.keys.write_text(KEYS)
        wait(lambda: status(ALL) == 200)


# gRPC


def channel(guarded):
    credentials = grpc.ssl_channel_credentials(guarded.certificate.read_bytes())
    return triton.InferenceServerClient(urlsplit(guarded.url).netloc, ssl=True, creds=credentials)


def infer(client, model, key=None):
    sent = triton.InferInput("features", [1, 16], "FP32")
    sent.set_data_from_numpy(np.ones((1, 16), np.float32))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return client.infer(model, [sent], headers=headers)


def test_a_grpc_call_has_its_key_in_its_metadata(guarded):
    with closing(channel(guarded)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert infer(client, "activation_mlp", ALL).as_numpy("scores").shape == (1, 4)
        for key, model, status in (
            (None, "activation_mlp", "UNAUTHENTICATED"),
            ("not-a-key-of-anybody", "activation_mlp", "UNAUTHENTICATED"),
            (ONE, "activation_mlp", "PERMISSION_DENIED"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                infer(client, model, key)
            assert status in caught.value.status()
        with pytest.raises(InferenceServerException) as caught:
            client.get_model_metadata("echo")
        assert "UNAUTHENTICATED" in caught.value.status()
        one = {"authorization": f"Bearer {ONE}"}
        assert client.get_model_metadata("echo", headers=one).name == "echo"
        # What the front tells the gRPC service cannot be said by a client.
        for headers in (one, one | {"x-vitrine-models": "other"}):
            with pytest.raises(InferenceServerException) as caught:
                client.get_model_metadata("other", headers=headers)
            assert "PERMISSION_DENIED" in caught.value.status()


# TLS


def test_the_addresses_that_are_printed_speak_tls(guarded):
    assert guarded.url.startswith("https://127.0.0.1:")
    line = next(line for line in guarded.printed().splitlines() if "activation_mlp -H" in line)
    done = subprocess.run(
        ["bash", "-c", line], env=os.environ | {"API_KEY": ALL}, capture_output=True, check=True
    )
    assert "outputs" in json.loads(done.stdout)
    with closing(socket.create_connection(guarded.place, timeout=10)) as plain:
        plain.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in plain.recv(1000)


def handshake(guarded, **options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    for name, value in options.items():
        setattr(context, name, value)
    with (
        closing(socket.create_connection(guarded.place, timeout=10)) as plain,
        context.wrap_socket(plain) as client,
    ):
        return client.version(), client.selected_alpn_protocol(), client.getpeercert(True)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_is_new_enough_and_leads_to_http_2(guarded):
    assert handshake(guarded)[:2] == ("TLSv1.3", "h2")
    assert handshake(guarded, maximum_version=ssl.TLSVersion.TLSv1_2)[:2] == ("TLSv1.2", "h2")
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(
            guarded,
            minimum_version=ssl.TLSVersion.TLSv1_1,
            maximum_version=ssl.TLSVersion.TLSv1_1,
        )


def test_a_certificate_is_renewed_while_the_server_runs(guarded):
    before = handshake(guarded)[2]
    make_certificate(guarded.certificate)
    wait(lambda: handshake(guarded)[2] != before)
    assert guarded.ask("/ping").ok
    after, good = handshake(guarded)[2], guarded.certificate.read_text()
    guarded.certificate.write_text("broken")
    wait(lambda: "it holds no private key" in guarded.printed())
    assert handshake(guarded)[2] == after
    guarded.certificate.write_text(good)


# Nothing of TorchServe's management is reached

MANAGEMENT = [
    ("GET", "/models"),
    ("POST", "/models?url=http://127.0.0.1:1/x.mar"),
    ("POST", "/models?url=file:///etc/passwd"),
    ("PUT", "/models/echo?min_worker=7"),
    ("PUT", "/models/echo/1.0?min_worker=7&synchronous=true"),
    ("PUT", "/models/echo/1.0/set-default"),
    ("DELETE", "/models/echo"),
    ("DELETE", "/models/echo/1.0"),
    ("GET", "/models/echo/all"),
    ("OPTIONS", "/models/echo"),
    ("POST", "/workflows?url=http://127.0.0.1:1/x.war"),
    ("GET", "/workflows"),
    ("DELETE", "/workflows/echo"),
    ("GET", "/metrics"),
    ("GET", "/api-description"),
    ("OPTIONS", "/"),
    ("GET", "/token?type=management"),
]
SPELLINGS = [
    "{}",
    "/{}",
    "/.{}",
    "/predictions/..{}",
    "/predictions/%2e%2e{}",
    "/predictions/echo/../..{}",
    "/ping/..{}",
    "/v2/health/..{}",
    "/v2/health/%2e%2e/%2e%2e{}",
    "http://127.0.0.1:8081{}",
    "http://x/predictions/..{}",
    "/%2f{}",
]


@pytest.mark.parametrize(("method", "path"), MANAGEMENT)
def test_nothing_of_the_management_is_reached_however_it_is_spelled(guarded, method, path):
    before = requests.get(f"{guarded.management}/models/echo", timeout=10).json()
    for spelling in SPELLINGS:
        target = spelling.format(path)
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:8081\r\nAuthorization: Bearer {ALL}"
        answer = guarded.raw(f"{head}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        assert answer.count(b"HTTP/1.1 ") == 1
        # `PUT /predictions/../models` predicts with a model of the name "..", which there is not.
        assert re.match(rb"HTTP/1.1 (400|404|405) ", answer), (target, answer)
    after = requests.get(f"{guarded.management}/models/echo", timeout=10).json()
    assert [one["workers"] for one in after] == [one["workers"] for one in before]
    assert guarded.send("echo", ALL).ok


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "..%5c..%5cx",
        "%00",
        "echo%00",
        "echo%0d%0ax:y",
        ".",
    ],
)
def test_a_name_that_is_a_path_is_no_model(guarded, name):
    for path in ("/predictions/{}", "/v2/models/{}/infer", "/v1/models/{}:predict"):
        head = f"POST {path.format(name)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALL}\r\n"
        answer = guarded.raw(head.encode() + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        assert re.match(rb"HTTP/1.1 (400|404|405) ", answer), answer
        assert answer.count(b"HTTP/1.1 ") == 1


# Requests that two servers could read differently

HEAD = (
    b"POST /predictions/echo HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
    b"Authorization: Bearer " + ALL.encode() + b"\r\n"
)
INNER = b"POST /predictions/other HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nsmuggled"
EMPTY = b"Content-Length: 0\r\n\r\n"
FIVE = b"Content-Length: 5\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"\r\n0\r\n\r\n"
# What is sent before INNER.
SMUGGLERS = {
    "a length and chunks": HEAD + FIVE + CHUNKED + LAST,
    "chunks and a length": HEAD + CHUNKED + FIVE + LAST,
    "two lengths": HEAD + b"Content-Length: 0\r\n" + FIVE + b"\r\n",
    "a list of lengths": HEAD + b"Content-Length: 0, 5\r\n\r\n",
    "a length with a sign": HEAD + b"Content-Length: +0\r\n\r\n",
    "a hexadecimal length": HEAD + b"Content-Length: 0x5\r\n\r\n",
    "a length before a space": HEAD + b"Content-Length : 5\r\n\r\n",
    "a folded length": HEAD + b"Content-Length:\r\n 5\r\n\r\n",
    "a folded coding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n" + LAST,
    "a coding before a space": HEAD + b"Transfer-Encoding : chunked\r\n" + LAST,
    "a coding before a tab": HEAD + b"Transfer-Encoding\t: chunked\r\n" + LAST,
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n" + LAST,
    "a coding after chunks": HEAD + b"Transfer-Encoding: chunked, x\r\n" + LAST,
    "chunks twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n" + LAST,
    "two codings": HEAD + CHUNKED + b"Transfer-Encoding: identity\r\n" + LAST,
    "a coding after a vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n" + LAST,
    "a name with a null": HEAD + b"Transfer-\0Encoding: chunked\r\n" + LAST,
    "a name with an underscore": HEAD + b"Content_Length: 100\r\n" + EMPTY,
    "a bare line feed in a header": HEAD + b"X: 1\n" + FIVE + b"\r\n",
    "a bare carriage return": HEAD + b"X: 1\r" + FIVE + b"\r\n",
    "a chunk with a sign": HEAD + CHUNKED + b"\r\n+0\r\n\r\n",
    "a chunk with 0x": HEAD + CHUNKED + b"\r\n0x0\r\n\r\n",
    "a chunk of too many digits": HEAD + CHUNKED + b"\r\n00000000000000000\r\n\r\n",
    "a chunk of no size": HEAD + CHUNKED + b"\r\n\r\n",
    "a chunk longer than its size": HEAD + CHUNKED + b"\r\n1\r\nxx\r\n0\r\n\r\n",
    "a chunk extension": HEAD + CHUNKED + b'\r\n0;x="\r\n\r\n"\r\n\r\n',
    "chunks ended by line feeds": HEAD + CHUNKED + b"\r\n5\nhello\n0\n\n",
    "a chunk extension with a line feed": HEAD + CHUNKED + b"\r\n2;\nxx\r\n0\r\n\r\n",
    "trailers": HEAD + CHUNKED + b"\r\n0\r\nContent-Length: 5\r\nHost: y\r\n\r\n",
    "an older version with chunks": HEAD.replace(b"P/1.1", b"P/1.0") + CHUNKED + LAST,
    "a GET with a body": b"GET /ping HTTP/1.1\r\nHost: x\r\n" + FIVE + b"\r\nhello",
    "an upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + EMPTY,
    "a line before the request": b"X: 1\r\n" + HEAD + EMPTY,
    "no host": HEAD.replace(b"Host: x\r\n", b"") + EMPTY,
    "two hosts": HEAD + b"Host: y\r\n" + EMPTY,
    "a fragment": HEAD.replace(b"/echo ", b"/echo#/ ") + EMPTY,
    "a folded header": HEAD + b"X-Y: 1\r\n Authorization: Bearer x\r\n" + EMPTY,
}


@pytest.mark.parametrize("form", SMUGGLERS)
def test_nothing_is_smuggled_past_the_front(guarded, form):
    """What follows is a request of its own, which has no key, or nothing; never one let through."""
    answer = guarded.raw(SMUGGLERS[form] + INNER)
    heads = re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)
    assert heads, answer
    assert len(heads) <= 2, answer
    assert b'"body": "smuggled"' not in answer
    if len(heads) == 2:
        assert heads[1] in (b"400", b"401")
    # The connection to TorchServe is not out of step either.
    for number in range(4):
        assert guarded.send("echo", ALL, data=f"after {number}").json()["body"] == f"after {number}"


# Limits


def test_an_address_has_so_many_requests_and_connections(tmp_path, guarded):
    config = tmp_path / "config.properties"
    changes = "front_requests_per_second=5\nfront_connections_per_client=30\n"
    config.write_text(DEFAULT_CONFIG.read_text() + "\n" + changes)
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(guarded.folder / "store" / "echo.mar", store)
    with running(store, tmp_path, "--front", "--config", str(config)) as server:
        answers = [requests.get(f"{server.url}{path}", timeout=10) for path in ["/v2"] * 20]
        refusals = [answer for answer in answers if answer.status_code != 200]
        assert 5 <= len(refusals) <= 15
        for answer in refusals:
            refused(answer, 429, "too_many_requests")
            assert answer.headers["retry-after"] == "2"
        where = urlsplit(server.url)
        place = (where.hostname, where.port)
        with ExitStack() as held:
            for _ in range(60):
                with suppress(ConnectionError):
                    held.enter_context(socket.create_connection(place, timeout=10))
            with pytest.raises(requests.ConnectionError):
                requests.get(f"{server.url}/v2", timeout=10)
            elsewhere = socket.create_connection(place, 10, source_address=("127.0.0.2", 0))
            with closing(elsewhere):
                elsewhere.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
                assert b" 200 " in elsewhere.recv(1000)
        time.sleep(2.1)
        assert requests.get(f"{server.url}/v2", timeout=10).ok


# The page


def test_the_page_tells_what_happens(guarded, monkeypatch, tmp_path):
    (tmp_path / ".curlrc").write_text("insecure\n")
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    monkeypatch.setenv("API_KEY", ALL)
    page = (ROOT / "docs" / "access.md").read_text()
    printed = dict(run_page("access.md", guarded.url, tmp_path))
    assert "scores" in json.loads(printed["key"])["outputs"]
    [shown] = re.findall(r"^```json\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert json.loads(printed["no_key"]) == json.loads(shown)
    assert len(page.splitlines()) <= 100


def test_without_the_front_keys_are_refused(tmp_path, guarded):
    command = [sys.executable, "-m", "server", "--no-front", "--port", "0"]
    options = ["--model-store", str(guarded.folder / "store")]
    done = subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env=os.environ | {"VITRINE_API_KEYS": str(guarded.keys)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--api-keys needs the front" in done.stderr
