"""The file that tells other programs where a server that is ready can be reached."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from server.errors import UsageError
from server.files import replace_file

__all__ = ["State", "prepare"]


@dataclass(frozen=True)
class State:
    """A server that is ready.

    Attributes:
        pid: The process to send SIGTERM to.
        inference, management, metrics: Base URLs.
        models: Names of the models.
        condition: The file of its condition, which lies in a folder of its own.
        store: The model store.
    """

    pid: int
    inference: str
    management: str
    metrics: str
    models: list[str]
    condition: str = ""
    store: str = ""

    def write(self, path: Path) -> None:
        """Write the file in one step: whoever sees it sees all of it.

        Raises:
            UsageError: It cannot be written.
        """
        try:
            replace_file(path, json.dumps(asdict(self)).encode())
        except OSError as error:
            raise UsageError(f"--state {path} cannot be written ({error.strerror}).") from None

    @classmethod
    def read(cls, path: Path) -> "State":
        """Read the file.

        Raises:
            OSError, ValueError: There is none, or it is not one.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except TypeError as error:
            raise ValueError(f"{path} is not a server's state: {error}") from None


def prepare(path: Path) -> None:
    """Remove the file of an earlier run, and make sure that there can be a new one.

    Raises:
        UsageError: There cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        os.unlink(temporary)
    except OSError as error:
        raise UsageError(
            f"--state {path} cannot be written ({error.strerror}); name a file in a folder "
            "that can be."
        ) from None
