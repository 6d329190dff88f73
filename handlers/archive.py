"""Open an archive outside a server."""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from formats.document import FormatError

__all__ = ["unpacked"]


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """Unpack a `.mar` into a temporary folder for the length of the context.

    Raises:
        FormatError: there is no such file, or it is not an archive.
    """
    if not archive.is_file():
        raise FormatError(f"{archive} is not there; expected a .mar file")
    with tempfile.TemporaryDirectory(prefix="vitrine-") as folder:
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(folder)
        except zipfile.BadZipFile as error:
            raise FormatError(f"{archive} is not a .mar archive: {error}") from None
        yield Path(folder)
