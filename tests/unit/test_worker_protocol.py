"""What the reader returns is what TorchServe's own reader returns, however the bytes arrive."""

import random
import socket
import struct
import sys
import threading
import warnings

import pytest

from handlers import worker_protocol
from handlers.worker_protocol import MessageReader

with warnings.catch_warnings():
    # It leaves the file with its version open.
    warnings.simplefilter("ignore", ResourceWarning)
    from ts import model_service_worker
    from ts.protocol import otf_message_handler

END = struct.pack("!i", -1)


def field(content):
    return struct.pack("!i", len(content)) + content


def prediction(*requests):
    """Write a batch: each request an id, headers and parts."""
    message = b"I"
    for request_id, headers, parts in requests:
        message += field(request_id)
        message += b"".join(field(name) + field(value) for name, value in headers) + END
        message += b"".join(b"".join(map(field, part)) for part in parts) + END
    return message + END


def load(name):
    strings = [field(name), field(b"/models/m"), struct.pack("!i", 16), field(b"handler.py")]
    return b"L" + b"".join(strings) + struct.pack("!i", -1) + field(b"") + b"\x01"


BATCH = [
    (b"id-1", [(b"Content-Type", b"application/json")], [(b"body", b"application/json", b"[1]")]),
    (b"id-2", [], []),
    (b"id-3", [(b"x", b""), (b"y", "é".encode())], [(b"a", b"", b""), (b"b", b"", bytes(300_000))]),
    (b"id-4", [], [(b"body", b"text/plain", bytes(range(256)) * 400)]),
]


@pytest.fixture
def raw_bodies(monkeypatch):
    # As the adapter sets it before the first prediction.
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")


def received(messages, sizes, read):
    """Send messages in pieces of these sizes; return what `read` makes of each."""
    ours, theirs = socket.socketpair()

    def send():
        rest = b"".join(messages)
        while rest:
            size = next(sizes)
            theirs.sendall(rest[:size])
            rest = rest[size:]
        theirs.close()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        reader = read(ours)
        return [reader() for _ in messages]
    finally:
        ours.close()
        sender.join()


def stock(connection):
    return lambda: otf_message_handler.retrieve_msg(connection)


def ours(connection):
    def read_other(command, reader):
        assert command == b"L"
        return otf_message_handler._retrieve_load_msg(reader)

    return MessageReader(connection, read_other).message


def steady(size):
    while True:
        yield size


def varied(seed):
    chance = random.Random(seed)
    while True:
        yield chance.choice([1, 2, 3, 5, 50, 4_000, 70_000, 200_000])


@pytest.mark.parametrize("sizes", [steady(10**7), steady(65_536), *map(varied, range(8))])
def test_messages_are_read_as_torchserve_reads_them(raw_bodies, sizes):
    messages = [load(b"m"), prediction(*BATCH), prediction(), prediction(BATCH[0]), load(b"n")]
    expected = received(messages, steady(10**7), stock)
    assert expected[1][1][2]["parameters"][1]["value"] == bytes(300_000)
    assert received(messages, sizes, ours) == expected


def test_a_message_in_single_bytes(raw_bodies):
    messages = [prediction(*BATCH[:2])] * 3
    assert received(messages, steady(1), ours) == received(messages, steady(10**7), stock)


@pytest.mark.parametrize("sent", [b"", b"I", prediction(BATCH[0])[:-9], prediction(BATCH[3])[:-90]])
def test_a_worker_whose_frontend_is_gone_ends(sent):
    ours_end, theirs = socket.socketpair()
    theirs.sendall(sent)
    theirs.close()
    with ours_end, pytest.raises(SystemExit) as ended:
        ours(ours_end)()
    assert ended.value.code == 0


def test_the_worker_reads_with_it_once_installed(monkeypatch, raw_bodies):
    monkeypatch.setattr(model_service_worker, "retrieve_msg", model_service_worker.retrieve_msg)
    monkeypatch.setitem(sys.modules, "__main__", model_service_worker)
    assert worker_protocol.install()
    retrieve = model_service_worker.retrieve_msg
    assert retrieve is not otf_message_handler.retrieve_msg
    for _ in range(2):  # A second connection begins with an empty buffer.
        messages = [load(b"m"), prediction(BATCH[0])]
        assert received(messages, steady(10**7), lambda end: lambda: retrieve(end)) == received(
            messages, steady(10**7), stock
        )
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"X")
        with pytest.raises(ValueError, match="Invalid command"):
            retrieve(near)


def test_elsewhere_nothing_is_replaced(monkeypatch):
    assert not worker_protocol.install()
    monkeypatch.setitem(sys.modules, "__main__", model_service_worker)
    monkeypatch.setattr("ts.__version__", "1.0.0")
    assert not worker_protocol.install()
