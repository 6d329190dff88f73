import gzip
import tracemalloc
import zlib

import pytest

from handlers import coding
from handlers.coding import compressed, decoded, takes_gzip
from handlers.errors import RequestError
from handlers.message import Request
from handlers.reply import Reply, respond

TEXT = b"[1, 2, 3]" * 100
BARE = zlib.compressobj(wbits=-15)
CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    " Deflate ": BARE.compress(TEXT) + BARE.flush(),
    "identity": TEXT,
    "": TEXT,
}


@pytest.mark.parametrize("name", CODED)
def test_a_coding_is_undone(name):
    assert decoded(CODED[name], name, len(TEXT)) == TEXT
    assert decoded(bytearray(CODED[name]), name, len(TEXT)) == TEXT


def refused(body, name, limit=10_000) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decoded(body, name, limit)
    return caught.value


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_damage_is_a_400(name):
    whole = CODED[name]
    for body in (b"", whole[:1], whole[:-1], whole + b"x", whole * 2, b"\0" * 30, TEXT):
        error = refused(body, name)
        assert (error.code, error.status) == ("bad_encoding", 400), body
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    assert refused(flipped, name).code == "bad_encoding"


@pytest.mark.parametrize("name", ["br", "zstd", "gzip, gzip", "compress", "x\r\n" * 500])
def test_an_unknown_coding_is_a_415(name):
    error = refused(TEXT, name)
    assert error.status == 415
    assert "gzip, deflate" in error.expected
    assert error.message.isprintable()


def test_a_bomb_is_a_413_and_makes_no_more_than_the_limit():
    bomb = gzip.compress(b"\0" * 200_000_000, 9)
    tracemalloc.start()
    try:
        error = refused(bomb, "gzip", 1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (error.code, error.status) == ("body_too_large", 413)
    assert peak < 3_000_000
    assert refused(gzip.compress(b"12345"), "gzip", 4).status == 413
    assert decoded(gzip.compress(b"12345"), "gzip", 5) == b"12345"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, False),
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("GZIP, deflate", True),
        ("br, gzip;q=0.1", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*", True),
        ("*, gzip;q=0", False),
        ("*;q=0", False),
        ("gzipped", False),
    ],
)
def test_who_takes_gzip(accept, wanted):
    assert takes_gzip(accept) is wanted


def test_only_long_json_is_compressed():
    def sent(body, media, accept):
        request = Request(b"", {"accept-encoding": accept})
        return respond(request, Reply(body, media))

    long = b"1" * coding.LEAST_BYTES
    packed = sent(long, "application/json", "gzip, deflate")
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.body) == long
    assert packed.body == compressed(long)
    plain = sent(long, "application/json", "deflate")
    assert (plain.body, plain.headers["vary"]) == (long, "Accept-Encoding")
    for body, media in ((long[1:], "application/json"), (long, "application/octet-stream")):
        left = sent(body, media, "gzip")
        assert left.body == body
        assert not {"content-encoding", "vary"} & left.headers.keys()


def test_errors_are_plain_json():
    request = Request(b"", {"accept-encoding": "gzip", "accept": "application/x-npy"})
    answer = respond(request, RequestError("c", "m" * 100_000))
    assert answer.headers == {"content-type": "application/json"}
    assert answer.body.startswith(b'{"error"')
