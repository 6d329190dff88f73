"""`python -m observe page LOG`: a web page over an activation log."""

import argparse
import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

import uvicorn

from observe.options import add_log_arguments, open_log
from observe.views.source import Source
from observe.views.web import application

__all__ = ["add_arguments", "run"]

_FIRST_SECONDS: Final = 0.5
_PATIENCE: Final = 3
"""Seconds that browsers have to take their last answers when it ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_log_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8090, help="0 for any that is free")
    parser.add_argument(
        "--every",
        type=float,
        default=2.0,
        metavar="S",
        help="seconds between two looks for something new",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    if options.every <= 0:
        print("error: --every is seconds, and more than 0", file=sys.stderr)
        return 2
    reader, index, baselines = open_log(options)
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listening = socket.create_server((options.host, options.port), family=family)
    except (OSError, OverflowError) as error:
        print(f"error: cannot listen on {options.host}:{options.port}: {error}", file=sys.stderr)
        return 2
    source = Source(reader, index, baselines, options.every)
    server = _Server(
        uvicorn.Config(
            application(source, _hosts(options.host)),
            log_level="warning",
            timeout_graceful_shutdown=_PATIENCE,
            server_header=False,
            ws="none",
            lifespan="off",
        )
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    with listening:
        reader.start(min(0.5, options.every))
        # Of a small log all is there when the address is; a large one goes on being read.
        reader.wait(_FIRST_SECONDS)
        print(f"http://{host}:{listening.getsockname()[1]}/", flush=True)
        try:
            server.run(sockets=[listening])
        finally:
            reader.close()
            index.close()
    return 0


class _Server(uvicorn.Server):
    """Ends at a signal, and does not raise it again once all is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield


def _hosts(host: str) -> list[str] | None:
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return ["localhost", "127.0.0.1", "[::1]", host] if local else None
