"""The process of the status service: `python -m server.status FILE`, started by the supervisor.

It listens on a socket that only the front reaches.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from server.catalog import Served
from server.endpoints import application
from server.lookup import Lookup
from server.openapi import document
from server.security import with_keys
from server.settings import Settings
from server.watch import DefaultWatch, Watch

__all__ = ["main"]


def main(settings: Settings) -> None:
    """Answer until told to end."""
    catalog = settings.catalog()
    lookup = Lookup(catalog, DefaultWatch(settings.management))

    def describe(defaults: Sequence[Served]) -> Mapping[str, Any]:
        described = document(catalog, settings.max_body, defaults)
        return with_keys(described) if settings.keys else described

    service = application(catalog, Watch(Path(settings.condition)), lookup, describe)
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
