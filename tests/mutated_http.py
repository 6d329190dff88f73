"""HTTP requests in every form, right ones and what is left of them after a few changes."""

import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from tests.conftest import ROOT
from tests.requests_of_all_kinds import HEADERS, LENGTH

PICTURE = (ROOT / "docs" / "images" / "seven.png").read_bytes()
METHODS = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "post", "CONNECT"]
PATHS = [
    "/", "/ping", "/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v1/models", "/v2/models",
    "/openapi.json", "/models", "/metrics", "/workflows", "/invocations", "/api-description",
    "/explanations/{}", "/models/{}/invoke", "/predictions/{}/1.0", "/predictions/{}/9", "//",
    "/predictions/{}/", "/predictions/", "/predictions/{}%00", "/predictions/%ff", "/../etc/passwd",
    "/v2/models/{}/versions/1.0/infer", "/v2/models/{}/versions/7/infer", "/v2/models/{}/versions",
    "/v1/models/{}", "/v1/models/{}:explain", "/v2/models/{}/ready", "/v2/models/{}/../digits",
    "/predictions/{}?describe=true", "/predictions/{}?data=[1]", "/PING", "/ping/", "/ping?x=%",
    "/v2/models/\"/ready", "/predictions/%22%7d", "/v1/models/{}%3Apredict", "/v2/models/%2e%2e",
    "/predictions/" + "x" * 5000, "*",
    "http://vitrine/predictions/{}", "http://vitrine", "http://vitrine/models", "x",
    "/predictions/{}/1.0/", "/predictions/{}/1.0/x", "http://vitrine/ping", "?", "**",
    "/predictions/{}#", "/./ping", "/predictions/{};v=1", "/predictions\\{}", "/predictions/{}/%2f",
]  # fmt: skip
HOSTILE = [
    b"mine", b"", b"\xff\xfe", b"x" * 1025, b"x" * 9000, b"[METRICS]a.Count:1", b"[PID]1", b"\x01",
    b'"}', b"%s%n", b"a\tb", b"\xc3\xbc", b"True", b"0", b"-1", b"9" * 40, b"${jndi:x}", b",",
]  # fmt: skip
NAMES = [
    "describe", "explain", "X-Correlation-Id", "traceparent", "X-Activations", "Accept",
    "Accept-Encoding", "Content-Type", "Content-Encoding", "Host", "Cookie", "Range", "Upgrade",
    "X-Request-Id", "TE", "X_Under", "If-None-Match", "X-Gone", "Forwarded", "Expect",
    "Inference-Header-Content-Length", "Keep-Alive", "Trailer", "Via", "Content-Type: x",
]  # fmt: skip
PIECES = [
    b'"', b"[", b"{", b",", b":", b"NaN", b"1e999", b"\\ud800", b"\xff", b"\0", b"null", b"-",
    b"9" * 400, b'"data"', b'"shape"', b'{"binary_data_size": 1}', b"true", b"[[[[[[", b'"BYTES"',
    b"\xef\xbb\xbf",
]  # fmt: skip


@dataclass
class Sent:
    """A request as it goes over the wire.

    Attributes:
        lie: What Content-Length says more than the body has; a connection is spent on it.
        chunked: Whether the body goes in chunks.
    """

    path: str
    body: bytes
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    method: str = "POST"
    lie: int = 0
    chunked: bool = False

    def wire(self) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\n".encode("latin-1")
        if all(name != "Host" for name, _ in self.headers):
            head += b"Host: vitrine\r\n"
        for name, value in self.headers:
            head += name.encode() + b": " + value + b"\r\n"
        if not self.chunked:
            length = max(0, len(self.body) + self.lie)
            return head + b"Content-Length: %d\r\n\r\n" % length + self.body
        sizes = range(0, len(self.body), 50)
        chunks = (self.body[place : place + 50] for place in sizes)
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def right(model: dict, rows: int, rng: np.random.Generator) -> list[Sent]:
    """Return a request in each form.

    Args:
        model: What /v2/models/NAME says of it; one float32 input.
        rows: How many.
        rng: Draws the values, 0 to 1.
    """
    name, [tensor] = model["name"], model["inputs"]
    array = rng.random((rows, *tensor["shape"][1:]), dtype=np.float32)
    predict, infer = f"/predictions/{name}", f"/v2/models/{name}/infer"
    file = io.BytesIO()
    np.save(file, array)
    entry = {"name": tensor["name"], "shape": list(array.shape), "datatype": "FP32"}
    size = {"parameters": {"binary_data_size": array.nbytes}}
    asked = {"parameters": {"binary_data_output": True}}
    start = json.dumps({"inputs": [entry | size], **asked}).encode()
    length = (LENGTH, str(len(start)).encode())
    kinds = {kind: [("Content-Type", f"application/{kind}".encode())]
             for kind in ("json", "x-npy", "octet-stream")}  # fmt: skip

    def text(path: str, document: object) -> Sent:
        return Sent(path, json.dumps(document).encode(), list(kinds["json"]))

    values = array.tolist()
    protocol = {"id": "7", "inputs": [entry | {"data": array.ravel().tolist()}]}
    forms = [
        text(predict, {"inputs": values}),
        text(predict, {tensor["name"]: values}),
        text(predict, values),
        text(f"/v1/models/{name}:predict", {"instances": values}),
        text(infer, protocol),
        Sent(infer, start + array.tobytes(), [*kinds["octet-stream"], length]),
        Sent(predict, file.getvalue(), list(kinds["x-npy"])),
        Sent(predict, array.tobytes(), list(kinds["octet-stream"])),
    ]
    if len(model["outputs"]) == 1:
        accept = ("Accept", b"application/x-npy")
        forms.append(replace(forms[7], headers=[*forms[7].headers, accept]))
    forms.append(replace(forms[0], headers=[*forms[0].headers, ("X-Activations", b"stats")]))
    zipped = [("Content-Encoding", b"gzip")]
    forms += [
        replace(one, body=gzip.compress(one.body, 1), headers=[*one.headers, *zipped])
        for one in (forms[0], forms[5])
    ]
    return forms


def pictures() -> list[Sent]:
    """Return pictures for `digits`."""
    file = io.BytesIO()
    Image.open(io.BytesIO(PICTURE)).convert("RGB").save(file, "JPEG")
    kinds = ((b"image/png", PICTURE), (b"image/jpeg", file.getvalue()))
    return [Sent("/predictions/digits", body, [("Content-Type", kind)]) for kind, body in kinds]


def mutated(sent: Sent, rng: random.Random) -> Sent:
    """Change a request in one to three ways."""
    changed = replace(sent, headers=list(sent.headers))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice(CHANGES)(changed, rng)
    return changed


def _cut(sent: Sent, rng: random.Random) -> None:
    sent.body = sent.body[: rng.randint(0, len(sent.body))]


def _drop(sent: Sent, rng: random.Random) -> None:
    place = rng.randint(0, len(sent.body))
    sent.body = sent.body[:place] + sent.body[place + rng.randint(1, 8) :]


def _put(sent: Sent, rng: random.Random) -> None:
    place = rng.randint(0, len(sent.body))
    sent.body = sent.body[:place] + rng.choice([*PIECES, rng.randbytes(4)]) + sent.body[place:]


def _flip(sent: Sent, rng: random.Random) -> None:
    body = bytearray(sent.body)
    for _ in range(rng.randint(1, 4)):
        if body:
            # Most formats keep what matters in front.
            body[rng.randrange(min(len(body), rng.choice([40, 10**9])))] = rng.randrange(256)
    sent.body = bytes(body)


def _word(sent: Sent, rng: random.Random) -> None:
    words = [b"inputs", b"name", b"shape", b"FP32", b"data", b"instances", b"binary_data_size",
             b"<f4", b"False", b"0.", b"1", b"]", b"}"]  # fmt: skip
    word = rng.choice(words)
    sent.body = sent.body.replace(word, rng.choice([*words, *PIECES]), rng.choice([1, 1, 99]))


def _deep(sent: Sent, rng: random.Random) -> None:
    depth = rng.choice([10, 900, 5000, 60_000])
    sent.body = rng.choice([b"[" * depth, b'{"inputs":' * depth, b"[" * depth + b"]" * depth])


def _random(sent: Sent, rng: random.Random) -> None:
    sent.body = rng.randbytes(rng.choice([0, 1, 16, 64, 256, 3000]))


def _zipped(sent: Sent, rng: random.Random) -> None:
    bomb = bytes(20_000_000) if rng.random() < 0.02 else sent.body
    sent.body = gzip.compress(bomb, 1) if rng.random() < 0.5 else zlib.compress(bomb, 1)
    coding = rng.choice([b"gzip", b"gzip", b"deflate", b"br", b"gzip, gzip", b"x"])
    sent.headers.append(("Content-Encoding", coding))
    if rng.random() < 0.4:
        _flip(sent, rng)


def _huge_picture(sent: Sent, rng: random.Random) -> None:
    size = rng.choice([0, 1, 9000, 2**31 - 1, 2**32 - 1])
    header = b"IHDR" + struct.pack(">II", size, rng.choice([1, size])) + PICTURE[24:29]
    sent.body = PICTURE[:12] + header + struct.pack(">I", zlib.crc32(header)) + PICTURE[33:]


def _header(sent: Sent, rng: random.Random) -> None:
    sent.headers.append((rng.choice(NAMES), rng.choice(HOSTILE)))


def _known_header(sent: Sent, rng: random.Random) -> None:
    name = rng.choice(sorted(HEADERS))
    value = rng.choice(HEADERS[name]).encode("utf-8", "replace")
    value = value.replace(b"\r", b" ").replace(b"\n", b" ")
    if rng.random() < 0.7:
        sent.headers = [pair for pair in sent.headers if pair[0].lower() != name]
    sent.headers.append((name, value))


def _twice(sent: Sent, rng: random.Random) -> None:
    if sent.headers:
        name, value = rng.choice(sent.headers)
        sent.headers.append((name.swapcase(), rng.choice([value, *HOSTILE])))


def _many(sent: Sent, rng: random.Random) -> None:
    count = rng.choice([40, 94, 99, 150])
    sent.headers += [(f"X-{number}", b"1") for number in range(count)]


def _length(sent: Sent, rng: random.Random) -> None:
    wrong = rng.choice([0, 1, len(sent.body) - 1, len(sent.body), len(sent.body) + 1, 2**40, -1])
    sent.headers = [pair for pair in sent.headers if pair[0].lower() != LENGTH]
    sent.headers.append((LENGTH, str(wrong).encode()))


def _method(sent: Sent, rng: random.Random) -> None:
    sent.method = rng.choice(METHODS)


def _path(sent: Sent, rng: random.Random) -> None:
    model = rng.choice(["digits", "dann", "activation_mlp", "control_flow", "none", "%64igits", ""])
    sent.path = rng.choice(PATHS).replace("{}", model)


def _lie(sent: Sent, rng: random.Random) -> None:
    sent.lie = rng.choice([-1, -7, 1, 50, 10**9])


def _form(sent: Sent, rng: random.Random) -> None:
    name = rng.choice([b"body", b"data", b"", b"x", b"describe"])
    part = b'--b\r\nContent-Disposition: form-data; name="' + name + b'"'
    part += rng.choice([b"", b'; filename="a.json"', b"\r\nContent-Type: application/json"])
    forms = {
        b"multipart/form-data; boundary=b": part + b"\r\n\r\n" + sent.body + b"\r\n--b--\r\n",
        b"application/x-www-form-urlencoded": name + b"=" + sent.body,
        b"multipart/form-data": sent.body,
        b"application/grpc": b"\0" + struct.pack(">I", len(sent.body)) + sent.body,
    }
    kind = rng.choice(sorted(forms))
    sent.headers = [pair for pair in sent.headers if pair[0].lower() != "content-type"]
    sent.headers.append(("Content-Type", kind))
    sent.body = forms[kind]
    if rng.random() < 0.3:
        rng.choice([_cut, _flip, _put])(sent, rng)


def _chunked(sent: Sent, rng: random.Random) -> None:
    sent.chunked = True


CHANGES: list[Callable[[Sent, random.Random], None]] = [
    _cut, _drop, _put, _put, _flip, _flip, _word, _word, _word, _deep, _random, _zipped,
    _huge_picture, _header, _header, _known_header, _known_header, _known_header, _twice, _many,
    _length, _length, _method, _path, _path, _lie, _chunked, _chunked, _form,
    _form,
]  # fmt: skip
