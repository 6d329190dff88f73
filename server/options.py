"""What the command line says of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.access import Access
from server.request_log import OFF

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """What to serve, and where.

    Attributes:
        config: The configuration file.
        store: The model store; None for the configuration's.
        models: Names of the models to serve; None for all of the store.
        port: See `ports.choose`.
        bind: Address of the inference API; None for the configuration's.
        state: The file to write when ready, if any.
        startup_timeout: Seconds within which every model has to be ready.
        front: Whether HAProxy stands before TorchServe; None for where it is installed.
        strict: Whether a model that cannot be served ends the others.
        grace_seconds: How long a server that was told to stop still takes requests.
        drain_seconds: How long it then has for those that it took.
        check_seconds: How long after a sample request a model is sent the next.
        access: Who may ask, and whether the front speaks TLS.
        defaults: Default versions by model, before those that the store keeps.
        share: See `versions.parse_share`.
        request_log: Where the front's line a request goes: "off", "stdout" or a file.
    """

    config: Path
    store: Path | None = None
    models: Sequence[str] | None = None
    port: int | None = None
    bind: str | None = None
    state: Path | None = None
    startup_timeout: float = 300.0
    front: bool | None = None
    strict: bool = False
    grace_seconds: float = 3.0
    drain_seconds: int = 30
    check_seconds: float = 300.0
    access: Access = field(default_factory=Access)
    defaults: Mapping[str, str] = field(default_factory=dict)
    share: str | None = None
    request_log: str = OFF
