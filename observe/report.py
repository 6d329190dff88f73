"""`python -m observe report LOG -o report.html`: one file to send on."""

import argparse
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from formats.document import FormatError
from observe.baselines import Baselines
from observe.index import Index
from observe.log_files import LogFiles
from observe.options import add_log_arguments, open_log
from observe.plots import STYLE, environment
from observe.reader import State
from observe.report_evidence import counted
from observe.report_layer import MOST_TABLED, strangest
from observe.report_section import Section, gather, log_norms
from observe.terminal import printable

__all__ = ["Report", "add_arguments", "html", "make", "run", "write"]

_STYLES: Final = (STYLE, STYLE.with_name("page.css"), STYLE.with_name("report.css"))
_MOST_FINDINGS: Final = 30
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)(s|min|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    Attributes:
        title: of the page.
        log: the path that was given.
        files: names of the log's files, and their bytes.
        state: how far the log was read.
        since: milliseconds since 1970, or None for the log's beginning.
        until: likewise; None for its end.
        made: when.
        sections: one for each version of each model.
    """

    title: str
    log: str
    files: tuple[tuple[str, int], ...]
    state: State
    since: int | None
    until: int | None
    made: int
    sections: tuple[Section, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_log_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="where to write it; - for standard output",
    )
    parser.add_argument("--model", metavar="NAME", help="only this model (default: all)")
    parser.add_argument("--version", metavar="V", help="only this version (default: all)")
    for name, what in (("--since", "from then on"), ("--until", "until then")):
        parser.add_argument(
            name,
            type=_moment,
            metavar="TIME",
            help=f"only records {what}: 2026-01-31T12:00 (UTC), or how long ago: 90s, 15m, 2h, 7d",
        )
    parser.add_argument("--title", metavar="TEXT", help="of the page")


def run(options: argparse.Namespace) -> int:
    """Read the log, and write the report.

    Raises:
        FormatError: there is no such log or nothing of what is asked for in it, or the report
            cannot be written.
    """
    target = None if options.output == "-" else _target(Path(options.output))
    reader, index, baselines = open_log(options)
    try:
        with Console(stderr=True).status(f"reading {printable(str(options.log))}"):
            state = reader.read_all()
            report = make(
                options.log,
                index,
                baselines,
                state,
                model=options.model,
                version=options.version,
                since=options.since,
                until=options.until,
                title=options.title,
            )
            text = html(report)
    finally:
        reader.close()
        index.close()
    if target is None:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()
    else:
        write(target, text)
    return 0


def make(
    log: Path,
    index: Index,
    baselines: Baselines,
    state: State,
    *,
    model: str | None = None,
    version: str | None = None,
    since: int | None = None,
    until: int | None = None,
    title: str | None = None,
) -> Report:
    """Gather what a report says.

    Args:
        log: the log's path.
        index: that it was read into.
        baselines: of the models.
        state: how far it was read.
        model: only this; None for all.
        version: likewise.
        since: milliseconds since 1970, the first that counts; None for all.
        until: the first that no longer counts; None for all.
        title: of the page.

    Raises:
        FormatError: the log has records, and none of what is meant.
    """
    known = counted(index, since, until)
    meant = [one for one in known if model in (None, one.model) and version in (None, one.version)]
    if (model or version) and known and not meant:
        asked = " ".join(part for part in (model, version) if part)
        names = ", ".join(printable(f"{one.model} {one.version}") for one in known)
        raise FormatError(f"{log} has nothing of {printable(asked)} there; it has: {names}")
    if title is None:
        names = ", ".join(dict.fromkeys(one.model for one in meant))
        title = f"What {names} did inside" if names else "An activation log"
    return Report(
        title,
        str(log),
        _files(log),
        state,
        since,
        until,
        time.time_ns() // 1_000_000,
        tuple(gather(index, baselines, one, since, until) for one in meant),
    )


def html(report: Report) -> str:
    """Return the report as one HTML document that needs nothing else."""
    style = "\n".join(path.read_text(encoding="utf-8") for path in _STYLES)
    made = environment()
    made.globals |= {
        "log_norms": log_norms,
        "most": strangest,
        "MOST_FINDINGS": _MOST_FINDINGS,
        "MOST_TABLED": MOST_TABLED,
    }
    return made.get_template("report.html").render(report=report, style=style)


def write(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees all of it, or what was there before.

    Raises:
        FormatError: it cannot be written.
    """
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FormatError(f"{path} cannot be written: {error.strerror}") from None


def _target(path: Path) -> Path:
    # A link stays one, and what it leads to is written.
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise FormatError(f"{path} is no file; expected a name for the report")
    if not path.parent.is_dir():
        raise FormatError(f"{path.parent} is not there; expected a folder for the report")
    return path


def _files(log: Path) -> tuple[tuple[str, int], ...]:
    sizes: dict[str, int] = {}
    for part in LogFiles(log).poll():
        sizes[part.path.name] = sizes.get(part.path.name, 0) + part.end - part.start
    return tuple(sorted(sizes.items()))


def _moment(text: str) -> int:
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return round(1000 * (time.time() - float(ago[1]) * _SECONDS[ago[2]]))
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        return round(found.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; expected 2026-01-31T12:00 or 2h"
        ) from None
