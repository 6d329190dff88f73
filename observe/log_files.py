"""The files of an activation log, while they are written, put aside, and deleted."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from formats.document import FormatError

__all__ = ["LogFiles", "Part"]

_PREFIX: Final = 4096
_PART: Final = 16 << 20
_BACKWARDS: Final = 1 << 16
_REMEMBERED: Final = 64
_PUT_ASIDE: Final = re.compile(r"(?P<stem>.+)\.(?P<number>[1-9][0-9]*)\.jsonl$")


@dataclass(frozen=True)
class Part:
    """Bytes of a file that are yet to be read: the lines that begin in `start` to before `end`.

    Attributes:
        path: of the file, when it was looked at.
        inode: of the file; another one at this path is not meant.
        start: of the part. Only at `first` does it have to be the start of a line.
        end: of the part.
        first: whether a line begins at `start`.
    """

    path: Path
    inode: int
    start: int
    end: int
    first: bool


@dataclass
class _Known:
    prefix: bytes
    path: Path
    inode: int
    offset: int = 0
    searched: int = 0


@dataclass
class LogFiles:
    """What has been read of a log's files, and what is new in them.

    A file is known again by how it begins (4 KiB; every line has its own time and request id),
    not by its name or inode: `NAME.jsonl` becomes `NAME.1.jsonl` when it is put aside, inodes of
    deleted files are given out again, and a file may be copied and then emptied.

    Attributes:
        path: a file `NAME.jsonl`, with which those put aside belong, or a folder of such files.
        truncated: how often a file was found shorter than what had been read of it.
        refused: why a file could not be read when they were last looked at, or None.
    """

    path: Path
    truncated: int = 0
    refused: str | None = None
    _known: list[_Known] = field(default_factory=list)

    def poll(self) -> list[Part]:
        """Look at the files; return what is new in whole lines, the newest first.

        What is returned counts as read from then on.

        Raises:
            FormatError: there is nothing at `path`.
        """
        parts: list[Part] = []
        matched: list[_Known] = []
        seen: set[tuple[int, int]] = set()
        self.refused = None
        try:
            paths = self._files()
        except PermissionError as error:
            self.refused = f"{error.filename} cannot be read: {error.strerror}"
            return []
        for path in paths:
            try:
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    if (status.st_dev, status.st_ino) in seen:
                        continue  # Renamed since it was looked at under its other name.
                    seen.add((status.st_dev, status.st_ino))
                    known = self._recognise(path, file, status, matched)
                    if known is not None:
                        matched.append(known)
                        parts += _new_parts(known, file)
            except FileNotFoundError:
                continue  # Put aside or deleted since the folder was listed: seen next time.
            except OSError as error:
                self.refused = f"{path} cannot be read: {error.strerror}"
        # One that was missed, because it was being renamed, is known again later.
        missed = [known for known in self._known if known not in matched]
        self._known = matched + missed[-_REMEMBERED:]
        return parts

    def _files(self) -> list[Path]:
        if self.path.is_dir():
            folder, stem = self.path, None
        elif self.path.parent.is_dir():
            folder, stem = self.path.parent, self.path.name.removesuffix(".jsonl")
            put_aside = any(_PUT_ASIDE.match(name.name) for name in folder.glob(f"{stem}.*.jsonl"))
            if not self.path.exists() and not put_aside:
                raise _missing(self.path)
        else:
            raise _missing(self.path)
        found = []
        for path in [self.path] if self.path.is_file() else []:
            found.append((0, path))
        # A glob would pass over a folder that may not be read.
        for path in (folder / name for name in os.listdir(folder) if name.endswith(".jsonl")):
            aside = _PUT_ASIDE.match(path.name)
            if path != self.path and (stem is None or (aside and aside["stem"] == stem)):
                found.append((int(aside["number"]) if aside else 0, path))
        return [path for _, path in sorted(found)]

    def _recognise(
        self, path: Path, file: BinaryIO, status: os.stat_result, matched: list[_Known]
    ) -> _Known | None:
        size, inode = status.st_size, status.st_ino
        prefix = file.read(_PREFIX)
        if b"\n" not in prefix and len(prefix) < _PREFIX:
            return None  # Nothing to know it by, and no line to read.
        same = [
            known
            for known in self._known
            if known not in matched
            and (prefix.startswith(known.prefix) or known.prefix.startswith(prefix))
        ]
        # Of several that begin alike, the one that was here.
        same.sort(key=lambda known: (known.inode != inode, known.path != path))
        if same:
            known = same[0]
            known.path, known.inode = path, inode
            known.prefix = max(known.prefix, prefix, key=len)
            if size < known.offset:
                self.truncated += 1
                known.prefix = prefix
                known.offset = known.searched = size
            return known
        if any(
            known.inode == inode and known.path == path and known.offset for known in self._known
        ):
            self.truncated += 1
        return _Known(prefix, path, inode)


def _new_parts(known: _Known, file: BinaryIO) -> list[Part]:
    begin, end = known.offset, _end_of_lines(file, known)
    known.offset = end
    return [
        Part(known.path, known.inode, start, min(start + _PART, end), start == begin)
        for start in reversed(range(begin, end, _PART))
    ]


def _end_of_lines(file: BinaryIO, known: _Known) -> int:
    """Return where the last whole line ends."""
    size = file.seek(0, 2)
    stop = size
    floor = max(known.offset, known.searched)
    while stop > floor:
        start = max(floor, stop - _BACKWARDS)
        file.seek(start)
        newline = file.read(stop - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        stop = start
    # A line that is still being written: next time only what comes after is looked through.
    known.searched = size
    return known.offset


def _missing(path: Path) -> FormatError:
    return FormatError(
        f"{path} is not there; expected an activation log (MODEL.jsonl), or the folder it is in"
    )
