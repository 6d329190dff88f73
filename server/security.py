"""What an OpenAPI document says where the front asks for API keys."""

import copy
from typing import Any, Final

from server.schemas import Schema

__all__ = ["with_keys"]

_SCHEMES: Final[Schema] = {
    "Bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_ERRORS: Final = {
    "401": ("Unauthenticated", "The request has no API key that is known."),
    "403": ("Forbidden", "The API key is for other models."),
}
_OPEN: Final = ("/ping", "/v2/health/")


def with_keys(document: Schema) -> dict[str, Any]:
    """Add to the document of a deployment that it asks for a key, and what it answers without."""
    made: dict[str, Any] = copy.deepcopy(document)
    made["security"] = [{name: []} for name in _SCHEMES]
    components = made["components"]
    components["securitySchemes"] = _SCHEMES
    for form in ("", "Oip"):
        schema = {"schema": {"$ref": f"#/components/schemas/{form}Error"}}
        for name, what in _ERRORS.values():
            answer = {"description": what, "content": {"application/json": schema}}
            components["responses"][form + name] = answer
    for path, methods in made["paths"].items():
        form = "Oip" if path.startswith("/v2") else ""
        for operation in methods.values():
            if path.startswith(_OPEN):
                operation["security"] = []
                continue
            for status, (name, _) in _ERRORS.items():
                refusal = {"$ref": f"#/components/responses/{form}{name}"}
                operation["responses"][status] = refusal
    return made
