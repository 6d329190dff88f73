"""`python -m server default`: which version answers unversioned URLs, told or switched."""

import argparse
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from server.errors import ServingError, UsageError
from server.readiness import NotListening, default_version, descriptions, judge
from server.state import State
from server.versions import keep_default

__all__ = ["run", "switch"]

_SECONDS = 30.0


def run(arguments: Sequence[str]) -> None:
    """Run the command line.

    Raises:
        UsageError: The server, the model or the version is not there.
        ServingError: The version is not ready, or TorchServe refused.
    """
    parser = argparse.ArgumentParser(
        prog="python -m server default",
        description="Say which version of a model answers where a request names none, or make "
        "another the one. No request is dropped: each is answered by one version or the other.",
    )
    parser.add_argument("model", metavar="NAME")
    parser.add_argument("version", nargs="?", metavar="VERSION", help="(default: say which it is)")
    parser.add_argument(
        "--state", type=Path, required=True, metavar="FILE", help="the state file of the server"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="later starts too: written into defaults.json of the server's model store",
    )
    given = parser.parse_args(arguments)
    state = _state(given.state)
    try:
        if given.version is not None:
            switch(state.management, given.model, given.version)
            if given.keep:
                keep_default(Path(state.store), given.model, given.version)
        print(_told(state.management, given.model))
    except NotListening as error:
        raise UsageError(f"{error}; is the server running?") from None


def switch(management: str, name: str, version: str) -> None:
    """Let a version answer where a request names none, once it can.

    Args:
        management: Base URL of the management API.
        name: The model's name.
        version: One of its versions.

    Raises:
        UsageError: There is no such model or version.
        ServingError: The version is not ready, or TorchServe refused.
        NotListening: Nobody answers there.
    """
    found = _versions(management, name)
    if version not in found:
        raise UsageError(f"Model {name!r} has no version {version}; there is: {', '.join(found)}.")
    problem = judge(name, [found[version]]).problem
    if problem is not None:
        raise ServingError(f"Version {version} of model {name!r} is not ready ({problem}).")
    url = f"{management}/models/{quote(name, safe='')}/{quote(version, safe='')}/set-default"
    try:
        asked = urllib.request.Request(url, method="PUT")  # noqa: S310
        with urllib.request.urlopen(asked, timeout=_SECONDS):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(1000).decode("utf-8", "replace").strip()
        raise ServingError(f"TorchServe refused ({error.code}): {said}") from None
    except (OSError, http.client.HTTPException) as error:
        raise NotListening(f"{management} does not answer ({error})") from None


def _versions(management: str, name: str) -> dict[str, dict[str, Any]]:
    """What describe says of each version."""
    described = descriptions(management, name)
    if described is None:
        raise UsageError(f"The server has no model {name!r}.")
    return {str(one["modelVersion"]): one for one in described}


def _told(management: str, name: str) -> str:
    versions, default = _versions(management, name), default_version(management, name)
    beside = ", ".join(version for version in versions if version != default)
    return f"{name}: {default} is the default" + (f"; beside it: {beside}" if beside else "")


def _state(path: Path) -> State:
    try:
        return State.read(path)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--state {path} cannot be read ({error}); it is written when the server is ready."
        ) from None
