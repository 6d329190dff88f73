"""The process of the status service: `python -m server.status FILE`, started by the supervisor.

It listens on a socket that only the front reaches.
"""

import sys
from pathlib import Path

import uvicorn

from server.endpoints import application
from server.openapi import document
from server.security import with_keys
from server.settings import Settings
from server.watch import Watch

__all__ = ["main"]


def main(settings: Settings) -> None:
    """Answer until told to end."""
    catalog = settings.catalog()
    described = document(catalog, settings.max_body)
    if settings.keys:
        described = with_keys(described)
    service = application(catalog, Watch(Path(settings.condition)), described)
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
