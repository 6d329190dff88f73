"""A versioned JSON document: how every format here is read and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class FormatError(ValueError):
    """A document is not what its reader expects; the message names the file and the field."""


def write_document(path: Path, kind: str, version: int, fields: Mapping[str, Any]) -> None:
    """Write `fields` as a JSON document of the given kind and version.

    The bytes depend on the content only: keys keep their order, no time is written.
    """
    path.write_text(document_text(kind, version, fields), encoding="utf-8")


def document_text(kind: str, version: int, fields: Mapping[str, Any]) -> str:
    """Return what `write_document` writes."""
    document = {"format": f"vitrine.{kind}", "version": version, **fields}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def read_document(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Read a JSON document and check its kind and version.

    Raises:
        FormatError: the file is missing, is not JSON, or is of another kind or version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FormatError(f"{path.name} is missing; expected a vitrine.{kind} document") from None
    return parse_document(content, path.name, kind, version)


def parse_document(content: bytes, name: str, kind: str, version: int) -> dict[str, Any]:
    """Read the content of a JSON document; `name` is for messages.

    Raises:
        FormatError: it is not JSON, or is of another kind or version.
    """
    try:
        document = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise FormatError(f"{name} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != f"vitrine.{kind}":
        raise FormatError(f"{name} is not a vitrine.{kind} document")
    if document.get("version") != version:
        raise FormatError(
            f"{name} has version {document.get('version')!r}; this Vitrine reads {version}: "
            "export the model again"
        )
    return document
