"""HTTP requests to a Unix socket, over connections that are kept."""

import http.client
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Answer", "Client", "UnixConnection"]


@dataclass(frozen=True)
class Answer:
    """An answer: its status, its headers with lower-case names, its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """Posts to one socket; each thread has a connection of its own.

    Args:
        path: The socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._own = threading.local()

    def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
        """Send a request and wait for the answer.

        Raises:
            TimeoutError: It did not come in time.
            OSError, http.client.HTTPException: It did not come at all.
        """
        kept = getattr(self._own, "connection", None)
        connection = self._own.connection = kept or UnixConnection(self._path)
        try:
            return _ask(connection, url, body, headers, timeout)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            connection.close()
            if kept is None:
                raise
            # It was closed while nobody used it.
            return _ask(connection, url, body, headers, timeout)
        except Exception:
            connection.close()
            raise


class UnixConnection(http.client.HTTPConnection):
    """A connection to a socket.

    Args:
        path: The socket.
        timeout: Seconds that anything may take.
    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Make it."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(
    connection: UnixConnection, url: str, body: bytes, headers: Mapping[str, str], timeout: float
) -> Answer:
    connection.timeout = timeout
    if connection.sock is not None:
        connection.sock.settimeout(timeout)
    connection.request("POST", url, body, dict(headers))
    response = connection.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, response.read())
