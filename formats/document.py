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
    document = {"format": f"vitrine.{kind}", "version": version, **fields}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_document(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Read a JSON document and check its kind and version.

    Raises:
        FormatError: the file is missing, is not JSON, or is of another kind or version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{path.name} is missing; expected a vitrine.{kind} document") from None
    except ValueError as error:
        raise FormatError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != f"vitrine.{kind}":
        raise FormatError(f"{path.name} is not a vitrine.{kind} document")
    if document.get("version") != version:
        raise FormatError(
            f"{path.name} has version {document.get('version')!r}; this Vitrine reads {version}: "
            "export the model again"
        )
    return document
