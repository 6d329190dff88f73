"""`python -m export inspect FILE.mar`: what is inside, in a form people read."""

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from export.archive import MODULE_FILE
from export.errors import ExportError
from export.report import render
from formats.certificate import Certificate
from formats.document import FormatError
from formats.integrity import check_archive
from formats.layers import Layers
from formats.signature import Signature

__all__ = ["inspect_archive"]

_GRAPH_LINES: Final = 40


def inspect_archive(archive: Path, folder: Path, full: bool) -> str:
    """Describe an archive: report, files and sizes, layers, code, graph.

    Args:
        archive: a `.mar` made by Vitrine.
        folder: an empty folder to unpack it into.
        full: print the whole graph instead of its beginning.

    Raises:
        ExportError: the file is missing or is not such an archive.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            entries = content.infolist()
            content.extractall(folder)
        signature, certificate = Signature.read(folder), Certificate.read(folder)
        layers = Layers.read(folder) if (folder / "layers.json").exists() else None
    except FileNotFoundError:
        raise ExportError("there is no such file", where=str(archive)) from None
    except (zipfile.BadZipFile, FormatError) as error:
        raise ExportError(f"not an archive of Vitrine: {error}", where=str(archive)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(folder / MODULE_FILE), map_location="cpu")
    graph = str(module.inlined_graph).splitlines()
    shown = graph if full else graph[:_GRAPH_LINES]
    if len(shown) < len(graph):
        shown.append(f"  ... {len(graph) - len(shown)} more lines: --full prints them")
    sections = [
        render(signature, certificate, layers),
        "## Files\n\n"
        + "\n".join(f"{entry.file_size:>10,} B  {entry.filename}" for entry in entries),
        "## Integrity\n\n" + _integrity(archive),
        "## Layers\n\n" + "\n".join(_layers(module)),
        "## Code\n\n" + str(module.code).rstrip(),
        "## Graph\n\n" + "\n".join(shown),
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def _integrity(archive: Path) -> str:
    try:
        check_archive(archive)
    except FormatError as error:
        return f"FELL: {error}"
    return "every file, and the archive as a whole, is what was certified"


def _layers(module: Any) -> Iterator[str]:
    width = max(len(name) for name, _ in module.named_modules())
    for name, layer in module.named_modules():
        own = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        count = f"{own:,} parameters" if own else ""
        yield f"{name or '(root)':<{max(width, 6)}}  {layer.original_name:<20} {count}".rstrip()
    total = sum(parameter.numel() for parameter in module.parameters())
    yield f"{total:,} parameters in all"
