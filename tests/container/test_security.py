"""What docs/security.md says stands before TorchServe's weaknesses, tried from outside."""

import json
import socket

import grpc
import pytest
import requests

from tests.errors import told

pytestmark = pytest.mark.container

ABSENT = "http://127.0.0.1:9/absent.mar"
# Of TorchServe's management API, metrics and workflows; then other ways to write them.
MANAGEMENT = [
    ("GET", "/models"),
    ("GET", "/models/digits"),
    ("POST", f"/models?url={ABSENT}"),
    ("PUT", "/models/digits?min_worker=0"),
    ("DELETE", "/models/digits"),
    ("PUT", "/models/digits/1.0/set-default"),
    ("POST", f"/workflows?url={ABSENT}"),
    ("GET", "/workflows"),
    ("POST", "/wfpredict/any"),
    ("GET", "/metrics"),
    ("GET", "/api-description"),
    ("OPTIONS", "/"),
    ("GET", "/token?type=management"),
    ("DELETE", "//models/digits"),
    ("DELETE", "/./models/digits"),
    ("DELETE", "/predictions/../models/digits"),
    ("DELETE", "/%6dodels/digits"),
    ("DELETE", "/predictions%2f..%2fmodels/digits"),
    ("DELETE", "http://127.0.0.1:8081/models/digits"),
]


def raw(port, text):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(text)
        return connection.makefile("rb").readline()


@pytest.mark.parametrize(("method", "target"), MANAGEMENT)
def test_management_is_not_reached_through_the_front(examples, method, target):
    # As it stands: a client library would tidy the path first.
    request = f"{method} {target} HTTP/1.1\r\nHost: localhost:8081\r\nContent-Length: 0\r\n"
    status = raw(examples.port(), f"{request}Connection: close\r\n\r\n".encode())
    assert status.split()[1] in (b"400", b"404", b"405"), status
    assert requests.get(f"{examples.url}/v2/models/digits/ready", timeout=10).ok


def test_torchserves_grpc_services_are_not_reached(examples):
    services = (
        "org.pytorch.serve.grpc.management.ManagementAPIsService/ListModels",
        "org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping",
    )
    with grpc.insecure_channel(f"127.0.0.1:{examples.port()}") as channel:
        for service in services:
            call = channel.unary_unary(f"/{service}")
            with pytest.raises(grpc.RpcError) as raised:
                call(b"", timeout=30)
            assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def inside(examples, method, path):
    """Ask the management API from inside, where alone it can be reached."""
    program = (
        "import sys, urllib.request as u, urllib.error as e\n"
        "try:\n"
        "    r = u.urlopen(u.Request('http://127.0.0.1:8081' + sys.argv[2], method=sys.argv[1]))\n"
        "except e.HTTPError as error:\n"
        "    r = error\n"
        "print(r.status); print(r.read().decode())\n"
    )
    code, output = examples.exec("python", "-c", program, method, path)
    assert code == 0, output
    status, _, body = output.partition("\n")
    return int(status), body


@pytest.mark.parametrize("kind", ["models", "workflows"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.mar", "https://127.0.0.1:9/x.mar"])
def test_even_inside_nothing_is_fetched(examples, kind, url):
    status, body = inside(examples, "POST", f"/{kind}?url={url}")
    # Refused, rather than tried: nobody listens there, and a try would say so.
    assert status >= 400
    assert "refused" not in body.lower()


def test_no_key_file_and_no_snapshot_are_written(examples):
    code, found = examples.exec(
        "find", "/tmp", "/opt/vitrine", "-name", "key_file*", "-o", "-name", "*snapshot*"
    )
    assert (code, found) == (0, "")


def test_a_client_cannot_write_lines_into_the_log(examples):
    mark = "[METRICS]forged.Count:1|#Level:Host|#hostname:x,1"
    for path in ("%0a" + mark, "digits%0d%0a" + mark):
        requests.post(f"{examples.url}/predictions/{path}", data=b"[1]", timeout=30)
    requests.post(
        f"{examples.url}/predictions/activation_mlp",
        data=json.dumps({"inputs": {"\n" + mark: [1]}}),
        headers={"Content-Type": "application/json", "X-Correlation-Id": mark},
        timeout=30,
    )
    assert not [line for line in examples.log.splitlines() if line.startswith(("[METRICS]", mark))]


FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
SAMPLE = {"inputs": [0.5] * 16}


def chunks():
    yield from [b"a&" * 500_000] * 16


@pytest.mark.parametrize("body", [b"a&" * 8_000_000, b"a&" * 40_000, chunks()],
                         ids=["16 MB", "80 kB", "chunked"])  # fmt: skip
def test_a_form_of_very_many_fields_is_not_read(examples, body):
    """CVE-2024-29025: TorchServe's Netty keeps every field of a form, however many there are."""
    url = f"{examples.url}/predictions/activation_mlp"
    answer = requests.post(url, data=body, headers=FORM, timeout=60)
    assert answer.status_code == 413
    assert told(url, answer.json())["code"] == "body_too_large"
    assert "65536 bytes" in answer.json()["error"]["expected"]
    assert requests.post(url, json=SAMPLE, timeout=10).ok


def test_a_form_of_many_fields_is_read(examples):
    url = f"{examples.url}/predictions/activation_mlp"
    # One of its fields is the body.
    form = b"a&" * 30_000 + b"data=[[" + b",".join([b"0.5"] * 16) + b"]]"
    answer = requests.post(url, data=form, headers=FORM, timeout=60)
    assert answer.status_code == 200, answer.text
