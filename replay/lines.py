"""Read recordings, a bounded number of bytes at a time, whatever else is in the files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from formats.document import FormatError
from formats.recording import Recording

__all__ = ["Skipped", "batches", "files_of"]

_REQUESTS: Final = 256
_BYTES: Final = 32 << 20
_LONGEST_LINE: Final = 64 << 20


@dataclass
class Skipped:
    """Lines that were not replayed.

    Attributes:
        broken: no whole record: cut short, or something else.
        other_models: requests to another model.
    """

    broken: int = 0
    other_models: int = 0


def files_of(path: Path) -> list[Path]:
    """Return the files of recordings, the oldest first.

    Args:
        path: a file, or a folder of `.jsonl` files.

    Raises:
        FormatError: there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise FormatError(f"{path} is not there; expected a recording, or a folder of .jsonl files")
    return found


def batches(files: list[Path], model: str, skipped: Skipped) -> Iterator[list[Recording]]:
    """Yield the requests to a model, some at a time, in the order of the lines.

    Args:
        files: the recordings.
        model: the model's name.
        skipped: what is left out is counted here.
    """
    batch: list[Recording] = []
    size = 0
    for path in files:
        with path.open("rb") as file:
            for line in _lines(file):
                recording = _parsed(line, skipped)
                if recording is None:
                    continue
                if recording.model != model:
                    skipped.other_models += 1
                    continue
                batch.append(recording)
                size += len(line)
                if len(batch) == _REQUESTS or size > _BYTES:
                    yield batch
                    batch, size = [], 0
    if batch:
        yield batch


def _parsed(line: bytes, skipped: Skipped) -> Recording | None:
    try:
        return Recording.parse(line)
    except FormatError:
        skipped.broken += bool(line.strip())
        return None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines; of one that is too long, its beginning only, which is no whole record."""
    while line := file.readline(_LONGEST_LINE):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(_LONGEST_LINE)):
            pass
