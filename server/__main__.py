"""`python -m server`: serve a model store.

`python -m server health` asks whether it is ready; `python -m server openapi` describes it;
`python -m server default` switches the version that answers unversioned URLs;
`python -m server java-cache` makes what is better made before a start than at each.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from server import default
from server.access import Access
from server.config import DEFAULT_CONFIG
from server.describe import openapi_text
from server.errors import ServerError
from server.health import report
from server.java import torchserve_home
from server.java_cache import make as make_java_cache
from server.java_native import lay_out
from server.options import Options
from server.request_log import STDOUT
from server.supervise import serve
from server.versions import parse_defaults


def main(arguments: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 after a requested stop or for a healthy server, 1 when a model cannot
        be loaded, TorchServe ended by itself or the server is not ready, 2 when the options,
        the store or the machine have to be changed first.
    """
    if arguments[:1] == ["health"]:
        return _health(arguments[1:])
    if arguments[:1] == ["openapi"]:
        return _openapi(arguments[1:])
    if arguments[:1] == ["default"]:
        return _default(arguments[1:])
    if arguments[:1] == ["java-cache"]:
        return _java_cache(arguments[1:])
    return _serve(arguments)


def _serve(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve the archives of a model store with TorchServe, in the foreground. "
        "`python -m server health` tells whether a server is ready; `python -m server openapi` "
        "writes its OpenAPI document.",
    )
    _add_common(parser)
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="inference port; management, metrics and gRPC take the four after it. 0 takes free "
        "ones (default: those of the configuration, 8080)",
    )
    parser.add_argument(
        "--bind",
        metavar="ADDRESS",
        help="address of the inference API; the others stay on this machine (default: that of "
        "the configuration, 127.0.0.1)",
    )
    parser.add_argument(
        "--startup-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="give up when not every model is ready by then (default: %(default)g)",
    )
    parser.add_argument(
        "--front",
        action=argparse.BooleanOptionalAction,
        help="put HAProxy before TorchServe (default: where it is installed)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="end when a model cannot be served (default: serve the others)",
    )
    parser.add_argument(
        "--grace-seconds",
        type=_seconds,
        default=3.0,
        metavar="SECONDS",
        help="after a SIGTERM, take requests for so long, not being ready any more, so that "
        "balancers can find out (default: %(default)g)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=_whole_seconds,
        default=30,
        metavar="SECONDS",
        help="then answer what was taken within so long (default: %(default)s)",
    )
    parser.add_argument(
        "--check-seconds",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="send each model its sample request this often to see whether it answers (default: "
        "%(default)g)",
    )
    parser.add_argument(
        "--api-keys",
        type=Path,
        default=_path("VITRINE_API_KEYS"),
        metavar="FILE",
        help="ask for one of the API keys in this file, a line `[NAME:]KEY [MODEL ...]` for each; "
        "it may change meanwhile (default: VITRINE_API_KEYS; without it, anybody may ask)",
    )
    parser.add_argument(
        "--tls",
        type=Path,
        default=_path("VITRINE_TLS"),
        metavar="FILE",
        help="speak TLS with the certificate, chain and key in this PEM file; it may change "
        "meanwhile (default: VITRINE_TLS; without it, no TLS)",
    )
    parser.add_argument(
        "--default",
        nargs="+",
        default=[],
        metavar="NAME=VERSION",
        help="which of several versions answers where a request names none (default: what the "
        "store's defaults.json says, else the highest)",
    )
    parser.add_argument(
        "--share",
        metavar="NAME=VERSION:PERCENT",
        help="which part of a model's predictions that name no version this version answers",
    )
    parser.add_argument(
        "--request-log",
        default=os.environ.get("VITRINE_REQUEST_LOG") or STDOUT,
        metavar="WHERE",
        help="where the front writes a line of JSON for each request: stdout, off, or a file "
        "(default: VITRINE_REQUEST_LOG, or stdout)",
    )
    given = parser.parse_args(arguments)
    try:
        serve(
            Options(
                config=given.config,
                store=given.model_store,
                models=given.models,
                port=given.port,
                bind=given.bind,
                state=given.state,
                startup_timeout=given.startup_timeout,
                front=given.front,
                strict=given.strict,
                grace_seconds=given.grace_seconds,
                drain_seconds=given.drain_seconds,
                check_seconds=given.check_seconds,
                access=Access(
                    keys=given.api_keys and given.api_keys.absolute(),
                    tls=given.tls and given.tls.absolute(),
                ),
                defaults=parse_defaults(given.default),
                share=given.share,
                request_log=given.request_log,
            )
        )
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _default(arguments: Sequence[str]) -> int:
    try:
        default.run(arguments)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _health(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server health",
        description="Exit with 0 only when the server is ready; print what is wrong.",
    )
    _add_common(parser)
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 when something is wrong at all"
    )
    parser.add_argument("--management", metavar="URL", help="base URL of the management API")
    given = parser.parse_args(arguments)
    found = report(
        config=given.config,
        store=given.model_store,
        state=given.state,
        management=given.management,
        models=given.models,
    )
    print(found.text)
    return 0 if found.ready and not (given.strict and found.degraded) else 1


def _openapi(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server openapi",
        description="Write the OpenAPI document of a model store, as a server answers it at "
        "/openapi.json.",
    )
    _add_store(parser)
    parser.add_argument("-o", type=Path, metavar="FILE", help="where to (default: standard output)")
    given = parser.parse_args(arguments)
    try:
        text = openapi_text(given.config, given.model_store, given.models)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if given.o is None:
        sys.stdout.write(text)
    else:
        given.o.write_text(text, encoding="utf-8")
    return 0


def _java_cache(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server java-cache",
        description="Make Java's cache of TorchServe, which every later start uses, and unpack its "
        "native libraries, so that nothing in /tmp has to be executable. Takes some ten seconds, "
        "and 45 MB in the Python environment.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="TorchServe's configuration (default: config.properties)",
    )
    given = parser.parse_args(arguments)
    try:
        print(lay_out(torchserve_home()))
        print(make_java_cache(given.config))
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 on")
    return value


def _whole_seconds(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 1 on")
    return int(text)


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_store(parser)
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="JSON file with the server's addresses and models; it exists while the server is "
        "ready",
    )


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-store",
        type=Path,
        metavar="DIR",
        help="folder of the archives (default: that of the configuration, model_store)",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="models of the store (default: all)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="TorchServe's configuration (default: config.properties)",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
