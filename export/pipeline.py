"""The stages in order: definition → TorchScript → signature → parity → rows → archive."""

import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from export import parity, rows
from export.archive import MODULE_FILE, write_archive, write_sample
from export.definition import Definition
from export.eager import Reference, reference
from export.errors import ExportError
from export.inputs import variants
from export.report import render
from export.signature import infer
from export.tensors import TOLERANCE
from export.torchscript import Method, compile_module, freeze, save
from formats.certificate import Certificate
from formats.signature import Signature

__all__ = ["Exported", "export_model", "outputs_of"]

_LINES_NAMED: Final = 5


@dataclass(frozen=True)
class Exported:
    """What an export left behind.

    Attributes:
        archive: the `.mar`.
        signature: as in the archive.
        certificate: as in the archive.
    """

    archive: Path
    signature: Signature
    certificate: Certificate


def outputs_of(name: str, store: Path) -> tuple[Path, Path, Path]:
    """Return the paths of a model's archive, report and sample request."""
    return store / f"{name}.mar", store / f"{name}.report.md", store / f"{name}.sample.json"


def export_model(
    definition: Definition,
    store: Path,
    method: Method = "script",
    progress: Callable[[str], Any] = lambda stage: None,
) -> Exported:
    """Compile, verify and archive a model.

    Args:
        definition: the model.
        store: an existing folder for the archive, the report and the sample request.
        method: "script" or "trace".
        progress: called with the name of each stage as it begins.

    Raises:
        ExportError: some stage refused; nothing was written to the store.
    """
    progress("eager answers")
    observed = reference(definition, variants(definition))
    signature = infer(definition)
    names = tuple(spec.name for spec in signature.outputs)
    with tempfile.TemporaryDirectory(prefix="vitrine-") as folder:
        module_path = Path(folder) / MODULE_FILE
        progress(method)
        save(compile_module(definition, method), module_path, definition)
        progress("parity in a fresh process")
        try:
            checks = parity.check(module_path, observed, names, method)
        except ExportError as error:
            error.where = error.where or str(definition.source)
            raise
        progress("row independence")
        frozen = freeze(torch.jit.load(str(module_path)))
        batching = rows.measure(frozen, signature, observed.cases)
        certificate = Certificate(
            method=method,
            versions={
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
            tolerance={
                name: pair
                for name, pair in TOLERANCE.items()
                if name in {spec.dtype for spec in signature.outputs}
            },
            checks=checks,
            batching=batching,
            notes=_notes(definition, observed),
        )
        progress("archive")
        archive, report, sample = outputs_of(definition.name, store)
        example = definition.examples[0]
        write_archive(archive, Path(folder), signature, certificate, example)
        report.write_text(render(signature, certificate), encoding="utf-8")
        write_sample(sample, signature, example)
    return Exported(archive, signature, certificate)


def _notes(definition: Definition, observed: Reference) -> tuple[str, ...]:
    notes = []
    if observed.lines_never_run:
        shown = ", ".join(
            place.replace(str(definition.source.resolve()), definition.source.name)
            for place in observed.lines_never_run[:_LINES_NAMED]
        )
        more = len(observed.lines_never_run) - _LINES_NAMED
        notes.append(
            f"no input reached {shown}{f' and {more} more lines' if more > 0 else ''}: "
            "add an example that does, to have them verified"
        )
    if observed.skipped:
        notes.append(
            f"{observed.skipped} of the made inputs were left out: the module raises on them"
        )
    return tuple(notes)
