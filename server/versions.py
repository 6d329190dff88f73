"""Which version of a model answers where a request names none."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.archives import Archive
from server.errors import UsageError
from server.files import replace_file

__all__ = [
    "DEFAULTS_FILE",
    "NO_SHARE",
    "Share",
    "arranged",
    "keep_default",
    "parse_defaults",
    "parse_share",
    "read_defaults",
]

#: In the model store: the default versions by model, as `python -m server default --keep` writes.
DEFAULTS_FILE: Final = "defaults.json"


def arranged(
    archives: Iterable[Archive], kept: Mapping[str, str], wanted: Mapping[str, str]
) -> list[Archive]:
    """Put archives in the order to load them: TorchServe's default is a model's first.

    Args:
        archives: Those that are served.
        kept: Default versions by model, of the store; models that are not served do not matter.
        wanted: The same, of the command line, which goes before it.

    Returns:
        Of each model the default version first, then the others, the highest first. The default
        is the highest where neither says another.

    Raises:
        UsageError: A version is named that is not served, or the command line names a model that
            is not.
    """
    by_model: dict[str, list[Archive]] = {}
    for archive in archives:
        by_model.setdefault(archive.name, []).append(archive)
    for name in wanted:
        if name not in by_model:
            raise UsageError(
                f"--default names model {name!r}, which is not served; there is: "
                f"{', '.join(sorted(by_model))}."
            )
    found = []
    for name, own in by_model.items():
        own.sort(key=lambda archive: _order(archive.version), reverse=True)
        where = "--default" if name in wanted else DEFAULTS_FILE
        version = wanted.get(name, kept.get(name))
        if version is not None and version not in [one.version for one in own]:
            raise UsageError(
                f"{where} says that version {version} of model {name!r} is the default, which is "
                f"not served; there is: {', '.join(one.version for one in own)}."
            )
        found += sorted(own, key=lambda archive: archive.version != version)
    return found


def parse_defaults(texts: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VERSION`, as the command line has them.

    Raises:
        UsageError: One is not of that form, or names a model a second time.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, separator, version = text.partition("=")
        if not (name and separator and version):
            raise UsageError(f"--default {text!r} is not of the form NAME=VERSION.")
        if found.setdefault(name, version) != version:
            raise UsageError(f"--default names two versions of model {name!r}.")
    return found


@dataclass(frozen=True)
class Share:
    """A part of the requests that name no version, for one version.

    Attributes:
        model, version: Which; empty for none.
        percent: The part, 0 to 100.
    """

    model: str = ""
    version: str = ""
    percent: int = 0


NO_SHARE: Final = Share()


def parse_share(text: str, archives: Iterable[Archive]) -> Share:
    """Read `NAME=VERSION:PERCENT`, as the command line has it.

    Args:
        text: The text.
        archives: Those that are served.

    Raises:
        UsageError: It is not of that form, or the version is not served.
    """
    parts = re.fullmatch(r"([\w.-]+)=([\w.-]+):(\d{1,3})%?", text, flags=re.ASCII)
    if parts is None or int(parts[3]) > 100:
        raise UsageError(f"--share {text!r} is not of the form NAME=VERSION:PERCENT, 0 to 100.")
    served = [(archive.name, archive.version) for archive in archives]
    if (parts[1], parts[2]) not in served:
        known = ", ".join(f"{name}={version}" for name, version in sorted(served))
        raise UsageError(f"--share {text!r} names a version that is not served; there is: {known}.")
    return Share(parts[1], parts[2], int(parts[3]))


def read_defaults(store: Path) -> dict[str, str]:
    """The default versions that a store keeps; none where it has no such file.

    Raises:
        UsageError: The file is not what `keep_default` writes.
    """
    path = store / DEFAULTS_FILE
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}).") from None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise UsageError(f'{path} is not of the form {{"NAME": "VERSION", ...}}.')
    return found


def keep_default(store: Path, name: str, version: str) -> None:
    """Make a version the default of every later start of a server on this store.

    Raises:
        UsageError: The store cannot be written, or holds a file of that name that is none.
    """
    text = json.dumps({**read_defaults(store), name: version}, indent=1) + "\n"
    try:
        replace_file(store / DEFAULTS_FILE, text.encode())
    except OSError as error:
        raise UsageError(
            f"{store / DEFAULTS_FILE} cannot be written ({error.strerror}); start the server with "
            f"--default {name}={version} instead."
        ) from None


def _order(version: str) -> list[tuple[int, int, str]]:
    """A key by which 1.10 comes after 1.9, and words come before numbers."""
    parts = version.split(".")
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
