"""The server's certificate (TLS), checked before HAProxy is given it."""

import ssl
from pathlib import Path

__all__ = ["BadCertificate", "read_certificate"]

_KEY_MARK = "PRIVATE KEY-----"


class BadCertificate(ValueError):
    """The file cannot be used; the text says why."""


def read_certificate(path: Path) -> str:
    """Read a certificate with its chain and its private key.

    Args:
        path: A PEM file with all of them, or `NAME.crt` beside a `NAME.key`, as in a Kubernetes
            secret.

    Raises:
        BadCertificate: There is none, or no key that belongs to it.
    """
    key_path = path
    try:
        pem = path.read_text(encoding="ascii")
        if _KEY_MARK not in pem:
            key_path = path.with_suffix(".key")
            if not key_path.exists():
                raise BadCertificate(
                    f"it holds no private key, and there is no {key_path.name} beside it; expected "
                    "a PEM file with the certificate, its chain and its key"
                )
            pem += "\n" + key_path.read_text(encoding="ascii")
        _check(path, key_path)
    except UnicodeDecodeError:
        raise BadCertificate("it is not a PEM file") from None
    except OSError as error:
        raise BadCertificate(f"it cannot be read ({error.strerror})") from None
    return pem


def _check(path: Path, key: Path) -> None:
    """Let OpenSSL load the pair."""

    def password() -> str:
        raise BadCertificate("its key is encrypted; expected one without a password")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, key, password)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise BadCertificate(f"OpenSSL refuses it: {reason}") from None
