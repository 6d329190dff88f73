"""Errors have two forms, and the path says which."""

from typing import Any
from urllib.parse import unquote, urlsplit

PARTS = {"code", "message", "input", "expected"}


def is_oip(url: str) -> bool:
    """Whether a URL or path is the Open Inference Protocol's, whose errors are strings."""
    path = unquote(urlsplit(url).path)
    return path == "/v2" or path.startswith("/v2/")


def told(url: str, document: Any) -> dict[str, str]:
    """Check that an error has the form that belongs to its URL or path, and return its parts."""
    if not is_oip(url):
        assert set(document) == {"error"}, document
        parts = document["error"]
    else:
        assert isinstance(document["error"], str), document
        parts = dict(document)
        expected = f"; expected {parts['expected']}" if "expected" in parts else ""
        assert parts["error"].endswith(expected), document
        parts["message"] = parts.pop("error").removesuffix(expected)
    assert {"code", "message"} <= set(parts) <= PARTS, document
    assert all(isinstance(part, str) and part for part in parts.values()), document
    assert parts["code"].isidentifier(), document
    return parts
