"""Is an archive what the export wrote? Each file against the certificate, the whole by its seal.

The certificate names the damaged file. The seal is the SHA-256 of the whole archive, kept in the
comment at the end of the zip: it also covers what is in no file, such as the zip's directory,
and is checked in one pass, without unpacking. Both find accidents, not forgers: whoever changes a
file on purpose can write new digests as well.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

from formats.certificate import FILE_NAME, VERSION, Certificate
from formats.document import FormatError

__all__ = ["UNSEALED", "check_archive", "check_files", "seal", "sha256"]

_PREFIX: Final = b"vitrine sha256 "
_DIGITS: Final = 64
_MANIFEST: Final = "MAR-INF/MANIFEST.json"
_CHUNK: Final = 1 << 20
_SHOWN: Final = 16

UNSEALED: Final = _PREFIX + b"0" * _DIGITS
"""The comment of a zip that `seal` will seal."""


def sha256(content: bytes) -> str:
    """Return the digest that certificates hold."""
    return hashlib.sha256(content).hexdigest()


def seal(path: Path) -> str:
    """Seal a zip whose comment is `UNSEALED`; return the digest."""
    with path.open("r+b") as file:
        digest = _digest(file, path.stat().st_size - _DIGITS)
        file.seek(-_DIGITS, 2)
        file.write(digest.encode())
    return digest


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Compare the files of an unpacked archive with a certificate's digests.

    Files that the certificate does not name are left alone: a server may add its own.

    Raises:
        FormatError: names the first file that is missing or changed.
    """
    for name, expected in files.items():
        try:
            with (folder / name).open("rb") as file:
                actual = _digest(file)
        except FileNotFoundError:
            raise FormatError(f"{name} is missing, but was certified; {_ADVICE}") from None
        _compare(name, actual, expected)


def check_archive(path: Path) -> None:
    """Check an archive without unpacking it: a `.mar` file, or a folder with the same content.

    One that Vitrine did not make, or made before archives were sealed, has no digests: of those,
    a zip has to be readable and to fit its own checksums.

    Raises:
        FormatError: it is damaged; the message names the file in it, where one can be named.
    """
    try:
        if path.is_dir():
            _check_folder(path)
        elif not _is_sealed(path):
            _check_unsealed(path)
        elif not _fits_seal(path):
            raise FormatError(_damage(path))
    except OSError as error:
        raise FormatError(f"it cannot be read ({error.strerror or error})") from None


_ADVICE: Final = "export the model again"


def _compare(name: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise FormatError(
            f"{name} is not what was certified: sha256 {actual[:_SHOWN]}..., "
            f"expected {expected[:_SHOWN]}...; {_ADVICE}"
        )


def _digest(file: BinaryIO, length: int | None = None) -> str:
    """Digest a file from its beginning, or the first `length` bytes of it."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK if length is None else min(_CHUNK, length)):
        digest.update(chunk)
        if length is not None:
            length -= len(chunk)
    return digest.hexdigest()


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(len(UNSEALED), path.stat().st_size), 2)
        return file.read()


def _is_sealed(path: Path) -> bool:
    return _tail(path).startswith(_PREFIX)


def _fits_seal(path: Path) -> bool:
    with path.open("rb") as file:
        digest = _digest(file, path.stat().st_size - _DIGITS)
    return digest.encode() == _tail(path)[-_DIGITS:]


def _check_folder(folder: Path) -> None:
    path = folder / FILE_NAME
    # Of another version, the handler inside the archive knows more.
    if path.is_file() and _version(path.read_bytes()) == VERSION:
        check_files(folder, Certificate.read(folder).files)


def _check_unsealed(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            sealed = FILE_NAME in archive.namelist() and _version(archive.read(FILE_NAME)) != 1
            # Of a cut archive, zipfile may find a zip inside it, the model's own.
            whole = _MANIFEST in archive.namelist()
            bad = archive.testzip()
    except Exception as error:  # damage sends zipfile down any path
        raise FormatError(
            f"it is no readable zip ({error}): cut short or damaged; {_ADVICE}"
        ) from None
    if not whole:
        raise FormatError(f"it holds no {_MANIFEST}: cut short, or no model archive; {_ADVICE}")
    if bad is not None:
        raise FormatError(f"{bad} does not fit its checksum in the zip; {_ADVICE}")
    if sealed:
        raise FormatError(
            f"its last {len(UNSEALED)} bytes are not the seal that the export wrote: damaged, or "
            f"packed anew; {_ADVICE}"
        )


def _version(certificate: bytes) -> int | None:
    """Return the version of a certificate, 1 if it is none of Vitrine's, None if it is damaged."""
    try:
        document = json.loads(certificate)
        if document["format"] != "vitrine.certificate":
            return 1
        return int(document["version"])
    except (ValueError, TypeError, KeyError):
        return None


def _damage(path: Path) -> str:
    """Say what is damaged in an archive that does not fit its seal."""
    name = FILE_NAME
    try:
        with zipfile.ZipFile(path) as archive:
            for name, expected in Certificate.parse(archive.read(FILE_NAME)).files.items():
                _compare(name, sha256(archive.read(name)), expected)
    except FormatError as error:
        return str(error)
    except KeyError:
        return f"{name} is missing, but was certified; {_ADVICE}"
    except Exception as error:  # damage sends zipfile down any path
        return f"{name} cannot be read ({error}); {_ADVICE}"
    return f"its files are what was certified, but the zip around them is damaged; {_ADVICE}"
