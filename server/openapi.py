"""The OpenAPI document of a deployment, made from the signatures of its models."""

from typing import Any

from server.catalog import Catalog

__all__ = ["document"]


def document(catalog: Catalog, max_body: int) -> dict[str, Any]:
    """Describe every endpoint for the models that are served."""
    return {"openapi": "3.1.0"}
