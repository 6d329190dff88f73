import pytest

from formats import Signature, TensorSpec
from handlers.asked import read
from handlers.errors import RequestError
from handlers.media import JSON, NPY, RAW, body_type, choose
from handlers.message import Request

ALL = (JSON, NPY, RAW)
X = TensorSpec("x", "float32", (-1, 2))
ONE = Signature("m", "1.0", "", (X,), (TensorSpec("y", "float32", (-1, 2)),), True)
TWO = Signature("m", "1.0", "", (X,), (X, TensorSpec("z", "int64", (-1,))), True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", JSON),
        ("application/json", JSON),
        ("Application/JSON; charset=UTF-8", JSON),
        ('application/json;charset="utf-8"', JSON),
        ("application/vnd.api+json", JSON),
        ("text/json", JSON),
        ("application/x-npy", NPY),
        ("application/octet-stream; charset=latin-1", RAW),
    ],
)
def test_the_type_of_a_body(text, wanted):
    assert body_type({"content-type": text}) == wanted
    assert body_type({}) == JSON


@pytest.mark.parametrize(
    "text",
    [
        "text/plain",
        "application/x-npz",
        "application/json; charset=utf-16",
        "application/json; charset=\u00fc",
        "json",
        "*/*",
        "\r\n[METRICS]" * 100,
    ],
)
def test_what_is_not_understood_is_a_415(text):
    with pytest.raises(RequestError) as caught:
        body_type({"content-type": text})
    error = caught.value
    assert error.status == 415
    assert error.message.isascii()
    assert "\n" not in error.message
    assert len(error.message) <= 200
    assert all(name in error.expected for name in ALL)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/x-npy", NPY),
        ("APPLICATION/X-NPY", NPY),
        ("application/x-npy, */*", NPY),
        ("*/*, application/x-npy", NPY),
        ("application/x-npy, application/json", NPY),
        ("application/json, application/x-npy", JSON),
        ("application/json;q=0.5, application/x-npy;q=0.8", NPY),
        ("application/json;q=0.9, application/x-npy; q=0.8", JSON),
        ("*/*;q=0.1, application/octet-stream;q=0.2", RAW),
        ("application/json;q=0, */*", NPY),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("application/json;version=2", JSON),
        ("application/x-npy;q=2, application/json;q=0.1", JSON),
        ("application/x-npy;q=, application/json", JSON),
        ("text/html", None),
        ("application/json;q=0", None),
        ("*/*;q=0.000", None),
        (",;,;;,", None),
        ("application/x-npy;q=nan", None),
    ],
)
def test_the_answer_that_a_client_likes_best(accept, wanted):
    assert choose(accept, ALL) == wanted


def ask(model, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return read(Request(b"[1, 2]", headers), model, (), 1000)


def test_an_answer_that_cannot_be_had_is_a_406_that_says_why():
    assert ask(ONE, accept="application/x-npy").media == NPY
    assert ask(TWO, accept="application/x-npy, application/json;q=0.1").media == JSON
    with pytest.raises(RequestError) as caught:
        ask(TWO, accept="application/x-npy")
    assert (caught.value.status, caught.value.expected) == (406, JSON)
    assert "the outputs x, z" in caught.value.message
    with pytest.raises(RequestError) as caught:
        ask(ONE, accept="image/png\r\n")
    assert (caught.value.status, caught.value.expected) == (406, ", ".join(ALL))
    assert caught.value.message.isprintable()


def test_the_protocol_keeps_its_form_whatever_is_accepted():
    body = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'
    asked = read(Request(body, {"accept": "application/x-npy"}), ONE, (), 1000)
    assert asked.envelope is not None
    assert asked.media == JSON
