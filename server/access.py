"""Who may ask, and with which certificate the front answers: files that may change meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from server.certificate import BadCertificate, read_certificate
from server.errors import UsageError
from server.keys import BadKeys, Key, read_keys

__all__ = ["Access"]

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Access:
    """The files, as the options name them.

    Attributes:
        keys: API keys, if there are any: see `keys`.
        tls: A certificate with its key, if the front has to speak TLS: see `certificate`.
    """

    keys: Path | None = None
    tls: Path | None = None

    def check(self, *, front: bool) -> None:
        """Find out whether the files can be used.

        Args:
            front: Whether there is one; nothing else can ask for keys or speak TLS.

        Raises:
            UsageError: They cannot.
        """
        if not front and (self.keys or self.tls):
            option = "--api-keys" if self.keys else "--tls"
            raise UsageError(
                f"{option} needs the front, which is what asks for keys and speaks TLS, and there "
                "is none; install HAProxy 2.6 or newer and leave --no-front out, or serve without "
                f"{option}."
            )
        self.read_keys()
        self.read_certificate()

    def curl_options(self) -> list[str]:
        """What a `curl` on this machine needs besides, as a shell takes it."""
        # The certificate is for the name that others use.
        tls = ["--insecure"] if self.tls else []
        return tls + (['-H "Authorization: Bearer $API_KEY"'] if self.keys else [])

    def read_keys(self) -> list[Key] | None:
        """The keys; None where none are asked for.

        Raises:
            UsageError: The file cannot be used.
        """
        return _read("--api-keys (VITRINE_API_KEYS)", self.keys, read_keys)

    def read_certificate(self) -> str | None:
        """The certificate with its chain and key; None where there is no TLS.

        Raises:
            UsageError: The file cannot be used.
        """
        return _read("--tls (VITRINE_TLS)", self.tls, read_certificate)


def _read(option: str, path: Path | None, read: Callable[[Path], _Read]) -> _Read | None:
    if path is None:
        return None
    if not path.exists():
        # It is not shown: where there is no such file, it may be a key.
        raise UsageError(f"{option} names a file that is not there; expected the path of one.")
    try:
        return read(path)
    except (BadKeys, BadCertificate) as error:
        raise UsageError(f"{option} {path}: {error}.") from None
