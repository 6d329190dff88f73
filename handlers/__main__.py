"""`python -m handlers FILE.mar --input sample.json`: one request, without a server."""

import argparse
import sys
from pathlib import Path

import torch

from formats.document import FormatError
from handlers import media
from handlers.archive import unpacked
from handlers.engines import use_engine
from handlers.model import Model, use_threads
from handlers.service import Request, Service


def main(arguments: list[str] | None = None) -> int:
    """Answer one request from a file, as the server would.

    Returns:
        0 when the answer is a 200, 1 when it is an error, 2 when there was nothing to ask.
    """
    parser = argparse.ArgumentParser(prog="python -m handlers", description=main.__doc__)
    parser.add_argument("archive", type=Path, help="a .mar file made by `python -m export`")
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help="a file with a request's JSON body, or a .npy file; - for JSON on stdin",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    options = parser.parse_args(arguments)
    try:
        from_stdin = str(options.input) == "-"
        body = sys.stdin.buffer.read() if from_stdin else options.input.read_bytes()
        use_threads(None)
        with unpacked(options.archive) as folder:
            device = torch.device(options.device)
            service = Service(Model(folder, device, use_engine(None)))
    except (FormatError, OSError, ValueError, RuntimeError) as error:
        print(f"python -m handlers: {error}", file=sys.stderr)
        return 2
    kind = media.NPY if options.input.suffix == ".npy" else media.JSON
    response = service.handle([Request(body, {"content-type": kind})])[0]
    print(response.body.decode("utf-8"))
    return 0 if response.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
