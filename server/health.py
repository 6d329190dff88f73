"""The health check of the command line: ready, degraded, or what is not ready."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.archives import examine
from server.condition import Condition
from server.config import Config
from server.errors import ServerError
from server.readiness import NotListening, unready
from server.state import State
from server.watch import Watch

__all__ = ["Report", "report"]

_TIMEOUT = 5.0


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        ready: Whether requests can be sent.
        degraded: Whether something is wrong all the same.
        text: What is wrong, or "ready".
    """

    ready: bool
    degraded: bool
    text: str


def report(
    *,
    config: Path,
    store: Path | None = None,
    state: Path | None = None,
    management: str | None = None,
    models: Sequence[str] | None = None,
) -> Report:
    """Find out what is not ready.

    A server whose state file is named says it in a file; one with a front, at `/health`. Without
    either, or where `management` or `models` are given, TorchServe's management API is asked, which
    is late to say that a worker was killed.

    Args:
        config: The configuration file.
        store: The model store; None for the configuration's.
        state: The state file of the server.
        management: Base URL of the management API.
        models: Names of the models to expect.
    """
    try:
        known = State.read(state) if state is not None else None
        if management is None and models is None:
            if known is not None and known.condition:
                return _of_condition(Watch(Path(known.condition)).condition())
            told = None if known else _told(Config.read(config).addresses().inference_url)
            if told is not None:
                return _report(told["status"], told["ready"], told["problems"])
        if known is not None:
            management = management or known.management
            models = models or known.models
        if management is None or models is None:
            settings = Config.read(config)
            management = management or settings.addresses().management_url
            if models is None:
                archives = examine(store or settings.model_store, None).archives
                models = [archive.name for archive in archives]
        waiting = unready(management.rstrip("/"), dict.fromkeys(models))
    except FileNotFoundError:
        return _not_ready(f"not ready yet: {state} is written when every model is")
    except (ServerError, NotListening, OSError, ValueError) as error:
        return _not_ready(f"not ready: {error}")
    if not waiting:
        return Report(ready=True, degraded=False, text="ready")
    return _not_ready(
        "not ready: " + ", ".join(f"{model.name} ({model.problem})" for model in waiting)
    )


def _not_ready(text: str) -> Report:
    return Report(ready=False, degraded=True, text=text)


def _of_condition(condition: Condition) -> Report:
    problems = condition.public()["problems"]
    found = _report(condition.status, condition.ready, problems)
    lines = [f"  {one.name}: {line}" for one in condition.models for line in one.lines]
    return Report(found.ready, found.degraded, "\n".join([found.text, *lines]))


def _report(status: str, ready: bool, problems: Sequence[dict[str, str]]) -> Report:
    word = status if ready else "not ready"
    if status == "stopping":
        word = "not ready: the server is stopping"
    text = "; ".join(f"{one['what']}: {one['why']}" for one in problems)
    return Report(ready, bool(problems), f"{word}: {text}" if text else word)


def _told(inference: str) -> dict[str, Any] | None:
    """What a front says at `/health`; None where there is none."""
    try:
        try:
            url = f"{inference}/health"
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:  # noqa: S310
                document = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                document = json.load(error)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    if not isinstance(document, dict) or not {"status", "ready", "problems"} <= document.keys():
        return None
    return document
