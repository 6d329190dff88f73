"""The front under faults: each gets the documented answer, and the worker lives."""

import json
import os
import shutil
import signal
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from urllib.parse import urlsplit

import pytest
import requests

from server.config import DEFAULT_CONFIG
from tests.errors import told
from tests.integration.conftest import running

if os.environ.get("VITRINE_URL"):
    pytest.skip("starts a server of its own", allow_module_level=True)
pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="no haproxy: the container tests ask the image's"
)
LIMIT = 200_000
# A handler of somebody else's, which does what the body says.
PUPPET = """
import time

def handle(data, context):
    if data is None:
        return None
    for name in ("describe", "x-vitrine-errors"):
        context.set_response_header(0, f"seen-{name}", str(context.get_request_header(0, name)))
    body = data[0].get("body", b"")
    order, _, value = (body if isinstance(body, str) else bytes(body).decode()).partition(" ")
    if order == "sleep":
        time.sleep(float(value))
    elif order == "fail":
        raise ValueError(value)
    elif order == "raise":
        from ts.utils.util import PredictionException
        raise PredictionException("because", int(value))
    elif order == "refuse":
        context.set_response_status(418, "Teapot", idx=0)
        return ['{"mine": "%s"}' % value]
    elif order == "repeat":
        return ["x" * int(value)]
    return [order or "nothing"]
"""


@pytest.fixture(scope="module")
def front(tmp_path_factory, exported):
    """A server with a puppet, a real model, a short queue and little patience."""
    folder = tmp_path_factory.mktemp("front")
    store = folder / "store"
    store.mkdir()
    with zipfile.ZipFile(store / "puppet.mar", "w") as archive:
        model = {"modelName": "puppet", "modelVersion": "1.0", "handler": "h.py"}
        manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("h.py", PUPPET)
    shutil.copy(exported("branch").archive, store)
    config = folder / "config.properties"
    changes = f"job_queue_size=4\ndefault_response_timeout=3\nmax_request_size={LIMIT}\n"
    config.write_text(DEFAULT_CONFIG.read_text() + "\n" + changes)
    with running(store, folder, "--config", str(config), "--front") as server:
        yield server


# Where errors are objects, and where they are strings.
BOTH = ["/predictions/puppet", "/v2/models/puppet/infer"]


def tell(front, order, *, path="/predictions/puppet", **options):
    headers = {"content-type": "text/plain", **options.pop("headers", {})}
    return front.post(path, data=order, headers=headers, **options)


def error(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.content.isascii()
    parts = told(answer.url, answer.json())
    assert parts["code"] == code
    return parts


def get(front, path, **options):
    return requests.get(f"{front.url}{path}", timeout=10, **options)


def wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _unharmed(front):
    """Whatever a test does, the same worker answers afterwards, unless the test ends it."""
    wait(lambda: get(front, "/v2/health/ready").ok, 60)
    yield
    wait(lambda: tell(front, "hello").text == "hello", 60)


def raw(front, *parts, pause=0.0):
    """Send bytes as they are; return all that comes back until the server closes or pauses."""
    where = urlsplit(front.url)
    with closing(socket.create_connection((where.hostname, where.port), timeout=10)) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        client.settimeout(2)
        received = b""
        try:
            while chunk := client.recv(65536):
                received += chunk
        except TimeoutError:
            pass
        return received


# Endpoints


def test_every_endpoint_of_both_protocols(front):
    assert get(front, "/ping").json() == {"status": "Healthy"}
    assert get(front, "/v2/health/live").json() == {"live": True}
    assert get(front, "/v2/health/ready").json() == {"ready": True}
    assert get(front, "/v1/models").json() == {"models": ["branch", "puppet"]}
    assert get(front, "/v1/models/branch").json() == {"name": "branch", "ready": True}
    for path in ("/v2/models/branch", "/v2/models/branch/versions/1.0"):
        metadata = get(front, path).json()
        assert (metadata["name"], metadata["versions"]) == ("branch", ["1.0"])
        assert metadata["inputs"][0]["datatype"] == "FP32"
        assert get(front, path + "/ready").json() == {"name": "branch", "ready": True}
    server = get(front, "/v2").json()
    assert set(server) == {"name", "version", "extensions"}


@pytest.mark.parametrize(
    "path", ["/ping", "/v2", "/v2/health/ready", "/v2/models/branch", "/v1/models", "/openapi.json"]
)
def test_head_is_get_without_a_body(front, path):
    head = requests.head(f"{front.url}{path}", timeout=10)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get(front, path).content))


@pytest.mark.parametrize(
    "path",
    ["/v2/models/none", "/v2/models/none/ready", "/v1/models/none", "/v2/models/branch/versions/7"],
)
def test_asking_for_an_unknown_model(front, path):
    assert error(get(front, path), 404, "model_not_found")["expected"].startswith("one of ")


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/none",
        "/predictions/puppet/7.0",
        "/v1/models/none:predict",
        "/v2/models/none/infer",
        "/v2/models/puppet/versions/7.0/infer",
    ],
)
def test_sending_to_an_unknown_model(front, path):
    answer = front.post(path, [1], headers={"X-Correlation-Id": "mine", "traceparent": "t-1"})
    error(answer, 404, "model_not_found")
    assert answer.headers["x-correlation-id"] == "mine"
    assert answer.headers["traceparent"] == "t-1"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2", "GET, HEAD"),
        ("GET", "/predictions/puppet", "POST, PUT"),
        ("DELETE", "/predictions/puppet", "POST, PUT"),
        ("GET", "/predictions/puppet/1.0/more", "POST, PUT"),
        ("GET", "/predictions/puppet/%2f", "POST, PUT"),
        ("GET", "/v2/models/puppet/infer", "POST"),
        ("PUT", "/v1/models/puppet:predict", "POST"),
        ("POST", "/v2/models/puppet", "GET, HEAD"),
        ("DELETE", "/ping", "GET, HEAD"),
        ("OPTIONS", "/v2/models/puppet", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_answered(front, method, path, allowed):
    answer = requests.request(method, f"{front.url}{path}", timeout=10)
    error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path",
    ["/", "/models", "/metrics", "/models/puppet", "/workflows", "/api-description", '/"', "/v2x",
     "/v2/x", "/v2/models", '/v2/"', "/%762/models", "/v2/models/branch/x", "/v2/health/x"],
)  # fmt: skip
def test_nothing_else_is_there(front, path):
    error(get(front, path), 404, "not_found")
    error(requests.options(f"{front.url}/", timeout=10), 404, "not_found")
    error(
        requests.options(f"{front.url}/v2/models/branch/infer", timeout=10),
        405,
        "method_not_allowed",
    )


@pytest.mark.parametrize("path", ["/predictions/%zz", "/v2/models/%zz/infer", "/%zz"])
def test_a_path_that_cannot_be_decoded_is_a_bad_request(front, path):
    answer = raw(front, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    parts = told(path, json.loads(answer.partition(b"\r\n\r\n")[2]))
    assert (parts["code"], parts["expected"]) == ("bad_request", "%25 for a percent sign")


@pytest.mark.parametrize("target", [b"*", b"**", b"http://x", b"http://x/models"])
def test_a_target_that_is_no_path(front, target):
    answer = raw(front, b"POST " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")), answer
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_path_may_come_with_the_host_as_to_a_proxy(front):
    for target, body in ((b"/ping", b"Healthy"), (b"/v2/models/branch", b'"branch"')):
        asked = b"GET http://x" + target + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = raw(front, asked)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert body in answer
    head = b"POST http://x/v2/models/puppet/versions/1.0/infer HTTP/1.1\r\nHost: x\r\n"
    answer = raw(front, head + b"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"hello")


def test_encoded_paths_are_the_same_paths(front):
    assert get(front, "/%70ing").json() == {"status": "Healthy"}
    assert get(front, "/v2/models/br%61nch").json()["name"] == "branch"


def test_a_version_may_stand_in_every_path(front):
    answer = front.post("/v2/models/puppet/versions/1.0/infer", data="hi", headers={
        "content-type": "text/plain"})  # fmt: skip
    assert answer.text == "hi"


# What handlers answer is theirs


def test_a_handlers_own_answers_stay_as_they_are(front):
    answer = tell(front, "refuse this")
    assert (answer.status_code, answer.json()) == (418, {"mine": "this"})
    for path in ("/predictions/branch", "/v2/models/branch/infer"):
        error(front.post(path, data=b"{"), 400, "not_json")


@pytest.mark.parametrize("path", BOTH)
def test_a_handler_that_raises(front, path):
    error(tell(front, "fail now", path=path), 500, "handler_failed")
    for status in (401, 403, 404, 405, 409, 422, 429, 501, 504, 507, 599):
        answer = tell(front, f"raise {status}", path=path)
        assert error(answer, status, "handler_failed")["message"] == "because"


def test_no_header_steers_the_handler(front):
    sent = {"describe": "True", "explain": "True", "X-Vitrine-Errors": "mine"}
    versioned = "/v2/models/puppet/versions/1.0/infer"
    for path, form in zip((*BOTH, versioned), ("object", "string", "string"), strict=True):
        answer = tell(front, "hello", path=path, headers=sent)
        assert (answer.text, answer.headers["seen-describe"]) == ("hello", "None")
        assert answer.headers["seen-x-vitrine-errors"] == form


def test_one_connection_serves_on_after_an_error(front):
    with requests.Session() as session:
        url = f"{front.url}/predictions/puppet"
        headers = {"content-type": "text/plain"}
        for order in ("fail now", "hello", "refuse me", "hello"):
            answer = session.post(url, data=order, headers=headers, timeout=10)
            assert answer.headers.get("connection") != "close"
        assert answer.text == "hello"


def test_a_form_that_cannot_be_read(front):
    form = {"content-type": "application/x-www-form-urlencoded"}
    for path in BOTH:
        error(front.post(path, data=b"%=%%x", headers=form), 400, "bad_request")


def test_what_calls_itself_grpc_without_http2(front):
    for path in ("/predictions/branch", "/v2/models/branch/infer"):
        answer = front.post(path, data=b"\0" * 5, headers={"content-type": "application/grpc"})
        error(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("value", [b"x", b"", b"100-continue, x", b"100-continue\r\nExpect: x"])
def test_an_expectation_that_is_not_known_is_ignored(front, value):
    answer = raw(front, POST + b"Expect: " + value + b"\r\nContent-Length: 5\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert answer.endswith(b"hello")


def test_who_expects_to_continue_may(front):
    answer = raw(front, POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert b"HTTP/1.1 200 " in answer


# Sizes


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(front):
    for path in BOTH:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT + 1}\r\n\r\n"
        answer = raw(front, head.encode())
        assert answer.startswith(b"HTTP/1.1 413 ")
        parts = told(path, json.loads(answer.partition(b"\r\n\r\n")[2]))
        assert parts["code"] == "body_too_large"
        assert str(LIMIT) in parts["expected"]
    assert tell(front, b"x" * LIMIT).status_code == 200


def test_a_large_body_that_is_sent_all_the_same(front):
    error(tell(front, b"x" * (LIMIT + 1)), 413, "body_too_large")


def test_a_chunked_body_that_is_too_large(front):
    chunks = (b"x" * 10_000 for _ in range(LIMIT // 10_000 + 2))
    # TorchServe closes while the body is still being sent, and its answer may be lost with that.
    with suppress(requests.ConnectionError):
        answer = tell(front, chunks)
        code = {413: "body_too_large", 502: "no_answer"}[answer.status_code]
        error(answer, answer.status_code, code)
    assert tell(front, iter([b"he", b"llo"])).text == "hello"


def test_headers_that_are_too_many_or_too_large(front):
    many = {f"x-{number}": "1" for number in range(150)}
    error(get(front, "/ping", headers=many), 431, "headers_too_large")
    error(get(front, "/ping", headers={"x-long": "1" * 20_000}), 431, "headers_too_large")
    error(get(front, "/v2", headers={"x-long": "1" * 20_000}), 431, "headers_too_large")
    assert get(front, "/ping", headers={"x-long": "1" * 100_000}).status_code == 400
    for size, status in ((7_500, 200), (8_500, 431)):
        answer = tell(front, "hello", headers={"x-long": "1" * size})
        assert answer.status_code == status
    assert get(front, "/v1/models/" + "x" * 3_900).status_code == 404
    error(get(front, "/predictions/" + "x" * 4_000), 431, "headers_too_large")


# Overload, time and death


def test_a_full_queue_is_503_and_says_when_to_try_again(front):
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda turn: tell(front, "sleep 0.2", path=BOTH[turn % 2]), range(12))
        )
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 12
    for answer in refused:
        error(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", BOTH)
def test_a_model_that_takes_too_long_is_504(front, path):
    error(tell(front, "sleep 5", path=path), 504, "timeout")


def test_a_worker_that_is_killed_is_not_ready_and_comes_back(front):
    others = front.worker_pids("branch")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tell, front, "sleep 2.5", path=BOTH[1])
        time.sleep(0.5)
        os.kill(front.worker_pids("puppet")[0], signal.SIGKILL)
        wait(lambda: get(front, "/v2/models/puppet/ready").status_code == 503, 5)
        assert get(front, "/v1/models/puppet").json() == {"name": "puppet", "ready": False}
        assert get(front, "/v1/models/puppet").status_code == 503
        ping = get(front, "/ping")
        assert (ping.status_code, ping.json()["status"]) == (503, "Unhealthy")
        assert get(front, "/v2/health/ready").json() == {"ready": False}
        assert get(front, "/v2/health/live").ok
        assert get(front, "/v2/models/branch/ready").ok
        assert front.post("/predictions/branch", [1.0, 2.0, 3.0]).status_code == 200
        error(waiting.result(), 503, "worker_died")
        assert "retry-after" in waiting.result().headers
    wait(lambda: get(front, "/v2/models/puppet/ready").ok, 60)
    assert tell(front, "hello").text == "hello"
    assert front.worker_pids("branch") == others


def test_a_torchserve_that_hangs_is_not_live(front):
    [java] = [pid for pid in children(front.pid) if b"ModelServer" in command_line(pid)]
    os.kill(java, signal.SIGSTOP)
    try:
        wait(lambda: get(front, "/v2/health/live").status_code == 503, 5)
        assert get(front, "/ping").status_code == 503
    finally:
        os.kill(java, signal.SIGCONT)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(number) for number in file.read().split()]


def command_line(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


# Clients that break off or lie

POST = b"POST /predictions/puppet HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"


def test_a_client_that_leaves_in_the_middle(front):
    pids = front.worker_pids("puppet")
    where = urlsplit(front.url)
    for sent in (
        POST[:20],
        POST + b"Content-Length: 100\r\n\r\nhalf",
        POST + b"Content-Length: 14\r\n\r\nrepeat 5000000",
    ):
        client = socket.create_connection((where.hostname, where.port), timeout=10)
        client.sendall(sent)
        time.sleep(0.1)
        client.close()
    assert tell(front, "hello").text == "hello"
    assert front.worker_pids("puppet") == pids


def test_a_wrong_content_length(front):
    assert raw(front, POST + b"Content-Length: 5\r\n\r\nhello, world").startswith(b"HTTP/1.1 200 ")
    for length in (b"-1", b"abc", b"5, 6", b"99999999999999999999999"):
        answer = raw(front, POST + b"Content-Length: " + length + b"\r\n\r\nhello")
        assert answer.startswith(b"HTTP/1.1 400 "), answer


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Content-Length : 5\r\n",
    ],
)
def test_what_two_servers_could_read_differently_is_refused(front, lines):
    answer = raw(front, POST + lines + b"\r\nhelloGET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 422 ", b"HTTP/1.1 501 ")), answer


def test_chunked_goes_before_a_length_and_ends_the_connection(front):
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = raw(
        front, POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n" + smuggled
    )
    assert b"smuggled" not in answer


def test_requests_in_flight_are_answered_before_a_stop(tmp_path, front):
    store = tmp_path / "store"
    store.mkdir()
    [java] = [pid for pid in children(front.pid) if b"ModelServer" in command_line(pid)]
    words = command_line(java).split(b"\0")
    shutil.copy(os.path.join(words[words.index(b"-s") + 1].decode(), "puppet.mar"), store)
    with ThreadPoolExecutor(1) as pool:
        with running(store, tmp_path, "--front") as server:
            waiting = pool.submit(tell, server, "sleep 2")
            time.sleep(0.5)
        assert waiting.result().text == "sleep"
