"""`python -m replay RECORDED CANDIDATE.mar`: try a new version on requests of the old one."""

import argparse
import math
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from formats.document import FormatError
from handlers.archive import unpacked
from handlers.jsontext import dumps
from handlers.model import use_threads
from replay.lines import files_of
from replay.report import Verdict, document, text
from replay.run import replay
from replay.subject import Subject

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Replay recorded requests on an archive, and compare its answers and layers.

    Returns:
        0 when no more requests differ than may, 1 when more do, 2 when nothing could be replayed.
    """
    options = _parser().parse_args(arguments)
    try:
        use_threads(None)
        files = files_of(options.recorded)
        with ExitStack() as stack:
            device = torch.device(options.device)
            candidate = Subject(stack.enter_context(unpacked(options.candidate)), device)
            against = None
            if options.against is not None:
                against = Subject(stack.enter_context(unpacked(options.against)), device)
            model = options.model or candidate.model.signature.model
            found = replay(
                files,
                model,
                candidate,
                against,
                tolerance=options.tolerance,
                progress=_progress,
            )
        requests = found.comparison.requests
        if not requests:
            raise FormatError(
                f"{options.recorded} holds no request to model {model!r} ({found.skipped.broken} "
                f"broken lines, {found.skipped.other_models} requests to other models)"
            )
        verdict = Verdict(found.comparison.differing, requests, options.allow)
        if options.json is not None:
            options.json.write_bytes(dumps(document(found, candidate, against, verdict)) + b"\n")
    except (FormatError, OSError, ValueError, RuntimeError) as error:
        print(f"python -m replay: {error}", file=sys.stderr)
        return 2
    print(text(found, candidate, against, verdict))
    return 0 if verdict.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m replay", description=main.__doc__)
    parser.add_argument("recorded", type=Path, help="a recording, or a folder of .jsonl files")
    parser.add_argument("candidate", type=Path, help="the archive to try, a .mar file")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="OLD.mar",
        help="let this archive answer the same requests, and compare layers as well (default: "
        "compare with the recorded answers)",
    )
    parser.add_argument(
        "--tolerance",
        type=_number,
        default=1e-3,
        metavar="T",
        help="a value may differ by T, plus T times its magnitude; `inf` leaves labels and errors "
        "to decide (default: %(default)g)",
    )
    parser.add_argument(
        "--allow",
        type=_number,
        default=0.0,
        metavar="SHARE",
        help="which part of the requests may differ, 0 to 1: in a value, a label, or by an error "
        "(default: none)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    parser.add_argument(
        "--model", metavar="NAME", help="replay requests to this model (default: the candidate's)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser


def _number(text: str) -> float:
    number = float(text)
    if math.isnan(number) or number < 0:
        raise ValueError
    return number


def _progress(requests: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{requests} requests", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
