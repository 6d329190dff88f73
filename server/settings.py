"""What the supervisor tells the services behind the front, in a file of the run's folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from server.archives import read_archive
from server.catalog import Catalog, read_served

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Where the services listen, and what they serve.

    Attributes:
        socket: Where the status service listens.
        grpc_socket: Where the gRPC service listens.
        front: Where the front listens for it.
        condition: The file of the server's condition.
        management: Base URL of TorchServe's management API.
        archives: The archives that are served, in the order in which they are loaded.
        max_body: Bytes that a request's body may have.
        patience: Seconds that an answer may take.
        keys: Whether the front asks for API keys.
        metrics: Host and port of the metrics, with a colon between them.
        torchserve_metrics: The socket of TorchServe's own metrics.
        admin: HAProxy's stats socket.
        request_log: "off", "stdout" or a file.
    """

    socket: str
    grpc_socket: str
    front: str
    condition: str
    management: str
    archives: list[str]
    max_body: int
    patience: int
    keys: bool
    metrics: str
    torchserve_metrics: str
    admin: str
    request_log: str

    def catalog(self) -> Catalog:
        """What is served."""
        return Catalog(read_served(read_archive(Path(path))) for path in self.archives)

    def write(self, path: Path) -> None:
        """Write them for `read`."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
