"""What the front lets clients have: connections, and requests in a second."""

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from server.errors import UsageError

__all__ = ["ClientLimits", "open_files"]

_CONNECTIONS: Final = 16384
# Files that HAProxy opens besides connections.
_OTHER_FILES: Final = 200


def open_files() -> int:
    """How many files a process may open here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2**30 if hard == resource.RLIM_INFINITY else hard


@dataclass(frozen=True)
class ClientLimits:
    """The front's limits.

    Attributes:
        connections: Open at once; more wait in the kernel's queue.
        per_client: Of one client's address; more are closed.
        rate: Requests in a second from one client's address; 0 for any number.
    """

    connections: int
    per_client: int
    rate: int

    def check(self, *, front: bool) -> None:
        """Find out whether somebody keeps clients to what was asked for.

        Raises:
            UsageError: There is no front, and a limit that only it has.
        """
        if self.rate and not front:
            raise UsageError(
                f"front_requests_per_second is {self.rate}, and there is no front to count; "
                "install HAProxy 2.6 or newer and leave --no-front out, or set it to 0."
            )

    @classmethod
    def read(cls, settings: Mapping[str, str], files: int) -> "ClientLimits":
        """Take them from the configuration.

        Args:
            settings: The configuration's.
            files: How many files a process may open: a connection may need two, one to the client
                and one to TorchServe.

        Raises:
            UsageError: A setting is no number, or not one that can be.
        """
        most = max(1, (files - _OTHER_FILES) // 2)
        connections = _number(settings, "front_connections", min(_CONNECTIONS, most), least=1)
        if connections > most:
            raise UsageError(
                f"front_connections is {connections}, and a process may open {files} files here, "
                f"enough for {most} connections; lower it, or raise the limit (ulimit -Hn)."
            )
        # No address can take all.
        half = max(1, connections // 2)
        per_client = _number(settings, "front_connections_per_client", half, least=1)
        return cls(
            connections, per_client, _number(settings, "front_requests_per_second", 0, least=0)
        )


def _number(settings: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    value = settings.get(name, "").strip()
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or not least <= int(value) < 2**31:
        raise UsageError(f"{name} is {value!r}; expected a whole number, {least} or more.")
    return int(value)
