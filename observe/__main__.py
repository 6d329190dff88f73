"""`python -m observe COMMAND`: look at activation logs."""

import argparse
import sys
from importlib import import_module
from types import ModuleType
from typing import Final

from formats.document import FormatError

COMMANDS: Final = {
    "top": "live in the terminal",
    "page": "a web page",
    "report": "one file to send on",
    "drift": "a table, and a status for cron",
}
# `observe.drift` is what is computed.
_MODULES: Final = {"drift": "drift_command"}


def _module(command: str) -> ModuleType:
    return import_module(f"observe.{_MODULES.get(command, command)}")


def main(arguments: list[str]) -> int:
    """Run a command; each is a module of its own with `add_arguments` and `run`."""
    parser = argparse.ArgumentParser(
        prog="python -m observe", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(
            # `--model` is not meant to be `--model-store` where there is none.
            name,
            help=help_text,
            description=help_text,
            allow_abbrev=False,
        )
        if name == chosen:
            # Only the one that is meant is imported: a terminal needs no web server.
            _module(name).add_arguments(command)
    options = parser.parse_args(arguments)
    try:
        return int(_module(options.command).run(options))
    except FormatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
