"""`python -m server openapi`: the OpenAPI document of a store, without a running server."""

import json
from collections.abc import Sequence
from pathlib import Path

from server.archives import examine
from server.catalog import Catalog, read_served
from server.config import Config
from server.openapi import document
from server.versions import arranged, read_defaults

__all__ = ["openapi_text"]


def openapi_text(config: Path, store: Path | None, models: Sequence[str] | None) -> str:
    """Write the document as text.

    Args:
        config: The configuration file.
        store: The model store; None for the configuration's.
        models: Names of the models; None for all of the store.

    Raises:
        UsageError: The store or a name is not as it has to be.
        ServingError: No archive is whole.
    """
    settings = Config.read(config)
    folder = store or settings.model_store
    archives = arranged(examine(folder, models).archives, read_defaults(folder), {})
    catalog = Catalog(read_served(archive) for archive in archives)
    return json.dumps(document(catalog, settings.max_body), indent=1) + "\n"
