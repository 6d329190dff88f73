"""The health check: every model ready with all its workers, or one line that says what is not."""

from collections.abc import Sequence
from pathlib import Path

from server.archives import examine
from server.config import Config
from server.errors import ServerError
from server.readiness import NotListening, unready
from server.state import State

__all__ = ["report"]


def report(
    *,
    config: Path,
    store: Path | None = None,
    state: Path | None = None,
    management: str | None = None,
    models: Sequence[str] | None = None,
) -> str | None:
    """Find out what is not ready.

    Where the server is and which models it has to serve comes from its state file, if one is
    named, else from the configuration and the archives of the store; `management` and `models`
    go before either.

    Args:
        config: The configuration file.
        store: The model store; None for the configuration's.
        state: The state file of the server.
        management: Base URL of the management API.
        models: Names of the models to expect.

    Returns:
        One line on what is not ready, or None when everything is.
    """
    try:
        if state is not None and (management is None or models is None):
            known = State.read(state)
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
        return f"not ready yet: {state} is written when every model is"
    except (ServerError, NotListening, OSError, ValueError) as error:
        return f"not ready: {error}"
    if not waiting:
        return None
    return "not ready: " + ", ".join(f"{model.name} ({model.problem})" for model in waiting)
