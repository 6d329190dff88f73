"""Files that are written in one step."""

import os
import tempfile
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that whoever reads it, or writes it too, sees all of it or none.

    Args:
        path: The file.
        content: What it is to hold.
        mode: Who may read it.

    Raises:
        OSError: It cannot be written.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.chmod(temporary, mode)
    os.replace(temporary, path)
