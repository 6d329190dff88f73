"""HAProxy's Runtime API: what of a front that runs can be replaced without a restart."""

import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["Admin", "Refused", "word"]

_TIMEOUT = 5.0
# A command has to fit into a buffer (tune.bufsize).
_LONGEST_PAYLOAD = 16_000


class Refused(Exception):
    """HAProxy does not answer, or does not do what it was told; the text is what it said."""


class Admin:
    """Gives commands to one HAProxy.

    Args:
        path: Its stats socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, command: str) -> str:
        """Give commands, separated by semicolons, and return what is said to them.

        Raises:
            Refused: HAProxy does not answer.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_TIMEOUT)
                connection.connect(str(self._path))
                connection.sendall(command.encode() + b"\n")
                said = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError as error:
            raise Refused(f"its socket: {error}") from None
        return said.decode(errors="replace").strip()

    def replace_map(self, name: Path, lines: Iterable[str]) -> None:
        """Replace a map at once: a request sees all of the old one or all of the new one.

        Args:
            name: The map's file, as the configuration names it; the file itself is left alone.
            lines: `KEY VALUE`.

        Raises:
            Refused: The old map stays.
        """
        escaped = word(name)
        said = self.ask(f"prepare map {escaped}")
        version = said.rpartition(":")[2].strip()
        if not version.isdigit():
            raise Refused(said)
        for part in _parts(lines):
            self._tell(f"add map @{version} {escaped} <<\n{part}")
        self._tell(f"commit map @{version} {escaped}")

    def replace_certificate(self, name: Path, pem: str) -> None:
        """Replace a certificate and its key; connections that are open keep the old one.

        Args:
            name: The certificate's file, as the configuration names it.
            pem: The chain and the key.

        Raises:
            Refused: The old one stays.
        """
        # An empty line would end the payload.
        escaped = word(name)
        lines = "\n".join(line for line in pem.splitlines() if line.strip())
        said = self.ask(f"set ssl cert {escaped} <<\n{lines}\n")
        if "Transaction created" not in said and "Transaction updated" not in said:
            raise Refused(said)
        said = self.ask(f"commit ssl cert {escaped}")
        if "Success!" not in said:
            self.ask(f"abort ssl cert {escaped}")
            raise Refused(said)

    def _tell(self, command: str) -> None:
        said = self.ask(command)
        if said:
            raise Refused(said)


def word(text: object) -> str:
    """One word of a command: a space would end it, a semicolon the command."""
    # One line: a model of somebody else's may be called anything.
    return re.sub(r"[\\ ;]", r"\\\g<0>", str(text).replace("\n", " "))


def _parts(lines: Iterable[str]) -> Iterator[str]:
    part = ""
    for line in lines:
        if part and len(part) + len(line) > _LONGEST_PAYLOAD:
            yield part
            part = ""
        part += line + "\n"
    if part:
        yield part
