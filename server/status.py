"""The process of the status service: `python -m server.status FILE`, started by the supervisor.

It listens on a socket that only the front reaches.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import uvicorn

from server.archives import read_archive
from server.catalog import Catalog, read_served
from server.endpoints import application
from server.openapi import document
from server.watch import Watch

__all__ = ["Settings", "main"]

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """What the supervisor tells the service.

    Attributes:
        socket: Where to listen.
        management: Base URL of TorchServe's management API.
        archives: The archives that are served, in the order in which they are loaded.
        max_body: Bytes that a request's body may have.
    """

    socket: str
    management: str
    archives: list[str]
    max_body: int

    def write(self, path: Path) -> None:
        """Write them for `read`."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def command(settings: Path) -> tuple[list[str], Path]:
    """The command line that runs the service, and the folder to run it in."""
    return [sys.executable, "-m", "server.status", str(settings)], _ROOT


def main(settings: Settings) -> None:
    """Answer until told to end."""
    catalog = Catalog(read_served(read_archive(Path(path))) for path in settings.archives)
    service = application(catalog, Watch(settings.management), document(catalog, settings.max_body))
    uvicorn.run(
        service,
        uds=settings.socket,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    main(Settings.read(Path(sys.argv[1])))
