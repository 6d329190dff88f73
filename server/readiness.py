"""Whether every model is ready, as the management API's describe says.

TorchServe's own `/ping` says Healthy before a model has loaded and for minutes after its workers
died, so nothing here asks it.
"""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from server.unix_http import UnixConnection

__all__ = [
    "ModelState",
    "NotListening",
    "answers_ready",
    "default_version",
    "descriptions",
    "judge",
    "model_state",
    "scale_to_zero",
    "unready",
]

_TIMEOUT = 5.0
_LONGEST_DESCRIPTION = 10_000_000


class NotListening(Exception):
    """The management API does not answer (yet)."""


@dataclass(frozen=True)
class ModelState:
    """What describe said of one model.

    Attributes:
        name: The model's name.
        problem: Why it is not ready; None when it is.
        registered: False when TorchServe does not know the model.
    """

    name: str
    problem: str | None
    registered: bool = True

    @property
    def ready(self) -> bool:
        """Whether all workers of the model have loaded it."""
        return self.problem is None


def descriptions(
    management: str, name: str, timeout: float = _TIMEOUT
) -> list[dict[str, Any]] | None:
    """Ask the management API for the versions of a model.

    Args:
        management: Base URL of the management API.
        name: The model's name.
        timeout: Seconds that it may take.

    Returns:
        What describe says of each version; None when TorchServe does not know the model.

    Raises:
        NotListening: Nobody answers there, or not with a description.
    """
    return _described(management, f"{quote(name, safe='')}/all", timeout)


def default_version(management: str, name: str, timeout: float = _TIMEOUT) -> str | None:
    """Ask the management API which version of a model answers where a request names none.

    Args:
        management: Base URL of the management API.
        name: The model's name.
        timeout: Seconds that it may take.

    Returns:
        The version; None when TorchServe does not know the model.

    Raises:
        NotListening: Nobody answers there, or not with a description.
    """
    found = _described(management, quote(name, safe=""), timeout)
    return str(found[0].get("modelVersion")) if found else None


def _described(management: str, path: str, timeout: float) -> list[dict[str, Any]] | None:
    url = f"{management}/models/{path}"
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310
            versions: list[dict[str, Any]] = json.loads(response.read(_LONGEST_DESCRIPTION))
            return versions
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                return None
            raise NotListening(f"{url} answers {error.code}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NotListening(f"{management} does not answer ({error})") from None


def model_state(management: str, name: str) -> ModelState:
    """Ask the management API for one model.

    Args:
        management: Base URL of the management API.
        name: The model's name.

    Raises:
        NotListening: Nobody answers there, or not with a description.
    """
    versions = descriptions(management, name)
    if versions is None:
        return ModelState(name, "not loaded by TorchServe", registered=False)
    return judge(name, versions)


def judge(name: str, versions: Sequence[dict[str, Any]]) -> ModelState:
    """Decide from the descriptions of a model's versions whether the model is ready.

    A version is ready when every worker is READY and there are at least minWorkers of them.
    """
    problems = []
    for version in versions:
        workers = version["workers"]
        ready = sum(worker["status"] == "READY" for worker in workers)
        expected = max(int(version["minWorkers"]), len(workers))
        if ready < expected:
            problems.append(f"{ready} of {expected} workers ready")
    problem = "; ".join(problems) if versions else "no version loaded"
    return ModelState(name, problem or None)


def unready(management: str, names: Iterable[str]) -> list[ModelState]:
    """The models that are not ready.

    Raises:
        NotListening: The management API does not answer.
    """
    states = [model_state(management, name) for name in names]
    return [state for state in states if not state.ready]


def scale_to_zero(management: str, name: str, version: str) -> None:
    """Let TorchServe end the workers of a version of a model, and start none again.

    Raises:
        NotListening: The management API does not answer, or refuses.
    """
    path = f"/models/{quote(name, safe='')}/{quote(version, safe='')}"
    url = f"{management}{path}?min_worker=0&max_worker=0"
    request = urllib.request.Request(url, method="PUT")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT):  # noqa: S310
            pass
    except (OSError, http.client.HTTPException) as error:
        raise NotListening(f"{url} is not answered ({error})") from None


def answers_ready(front: Path) -> bool:
    """Whether the front says that every model is ready.

    Args:
        front: The socket on which it asks for no key.
    """
    try:
        with closing(UnixConnection(str(front), _TIMEOUT)) as connection:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
