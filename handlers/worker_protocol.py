"""TorchServe's messages to a worker, read in few system calls.

TorchServe 0.12 reads a message field by field from the socket: a request with ten headers takes
fifty system calls, and a third of a worker's time under load. Here a message is read as it lies
in the socket, and what its fields hold is what `ts.protocol.otf_message_handler` would return,
with bodies as bytes. The layout is the one documented there.
"""

import socket
import struct
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

__all__ = ["MessageReader", "install"]

_PREDICT: Final = b"I"
_END: Final = -1
_CHUNK: Final = 65_536
_INT: Final = struct.Struct("!i")
_VERSION: Final = "0.12"


class MessageReader:
    """Reads what TorchServe sends over one connection.

    Args:
        connection: the worker's end, blocking.
        read_other: reads the rest of a message that is no prediction, from an object with `recv`.

    Attributes:
        connection: as it was given.
    """

    def __init__(
        self, connection: socket.socket, read_other: Callable[[bytes, "MessageReader"], Any]
    ) -> None:
        self.connection = connection
        self._read_other = read_other
        self._buffer = bytearray()
        self._place = 0

    def message(self) -> tuple[bytes, Any]:
        """Wait for a message, and return its command and what it holds.

        Raises:
            SystemExit: TorchServe closed the connection.
        """
        command = bytes(self._take(1))
        if command != _PREDICT:
            return command, self._read_other(command, self)
        requests = []
        while (request_id := self._field()) is not None:
            requests.append(self._request(request_id))
        return command, requests

    def recv(self, size: int) -> bytearray:
        """Return some bytes of the connection, as a socket does: at most `size`."""
        if self._place == len(self._buffer):
            self._fill(1)
        return self._take(min(size, len(self._buffer) - self._place))

    def _request(self, request_id: bytearray) -> dict[str, Any]:
        headers = []
        while (name := self._field()) is not None:
            headers.append({"name": name, "value": self._field()})
        parts = []
        while (name := self._field()) is not None:
            media = self._field() or b""
            value = self._field()
            parts.append({"name": name.decode(), "contentType": media.decode(), "value": value})
        return {"requestId": request_id, "headers": headers, "parameters": parts}

    def _field(self) -> bytearray | None:
        """Return a field, which stands behind its length, or None for the end of a list."""
        start = self._place + _INT.size
        if start > len(self._buffer):
            self._fill(_INT.size)
            start = _INT.size
        (length,) = _INT.unpack_from(self._buffer, start - _INT.size)
        self._place = start
        if length == _END:
            return None
        stop = start + length
        if stop > len(self._buffer):
            return self._take(length)
        self._place = stop
        return self._buffer[start:stop]

    def _take(self, size: int) -> bytearray:
        here = len(self._buffer) - self._place
        if here < size <= _CHUNK:
            self._fill(size)
            here = size
        if here >= size:
            taken = self._buffer[self._place : self._place + size]
            self._place += size
            return taken
        # A large body goes from the socket to where it stays.
        taken = bytearray(size)
        taken[:here] = memoryview(self._buffer)[self._place :]
        self._buffer = bytearray()
        self._place = 0
        view = memoryview(taken)
        while here < size:
            here += self._received(self.connection.recv_into(view[here:]))
        return taken

    def _fill(self, size: int) -> None:
        """Read until at least `size` bytes lie ready."""
        del self._buffer[: self._place]
        self._place = 0
        while len(self._buffer) < size:
            piece = self.connection.recv(_CHUNK)
            self._received(len(piece))
            self._buffer += piece

    @staticmethod
    def _received(size: int) -> int:
        if size == 0:
            # As TorchServe's own reader ends a worker whose frontend is gone.
            sys.exit(0)
        return size


def install() -> bool:
    """Let the worker that this process is read its messages this way.

    Returns:
        Whether it does: not where this is no worker of TorchServe 0.12.
    """
    worker = sys.modules["__main__"]
    if not _is_known(worker):
        return False
    from ts.protocol import otf_message_handler

    def read_other(command: bytes, reader: MessageReader) -> Any:
        if command != otf_message_handler.LOAD_MSG:
            raise ValueError(f"Invalid command: {command!r}")
        return otf_message_handler._retrieve_load_msg(reader)

    reader: MessageReader | None = None

    def retrieve_msg(connection: socket.socket) -> tuple[bytes, Any]:
        nonlocal reader
        if reader is None or reader.connection is not connection:
            reader = MessageReader(connection, read_other)
        return reader.message()

    worker.retrieve_msg = retrieve_msg  # type: ignore[attr-defined]
    return True


def _is_known(worker: ModuleType) -> bool:
    import ts

    return (
        str(ts.__version__).startswith(_VERSION)
        and callable(getattr(worker, "retrieve_msg", None))
        and hasattr(worker, "TorchModelServiceWorker")
    )
