"""The stages in order: definition → TorchScript → signature → parity → rows → archive."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from engine import plain_graph
from export import parity, rows
from export.archive import MODULE_FILE, write_archive, write_sample
from export.definition import Definition
from export.eager import Reference, reference
from export.errors import ExportError
from export.functional import functional_calls
from export.hooks import unshare
from export.inputs import variants
from export.observed import check as check_observed
from export.observed import compile_hooks
from export.report import render
from export.signature import infer
from export.tensors import TOLERANCE
from export.torchscript import Method, compile_module, refuse_state, save
from formats.certificate import Certificate, Check
from formats.layers import Layers
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
    layers: Sequence[str] = (),
    progress: Callable[[str], Any] = lambda stage: None,
) -> Exported:
    """Compile, verify and archive a model.

    Args:
        definition: the model.
        store: an existing folder for the archive, the report and the sample request.
        method: "script" or "trace".
        layers: which layers to observe instead of the definition's own choice.
        progress: called with the name of each stage as it begins.

    Raises:
        ExportError: some stage refused; nothing was written to the store.
    """
    progress("eager answers")
    unshare(definition.module)
    observed = reference(definition, variants(definition))
    signature = infer(definition, observed)
    names = tuple(spec.name for spec in signature.outputs)
    with tempfile.TemporaryDirectory(prefix="vitrine-") as folder:
        module_path = Path(folder) / MODULE_FILE
        progress(method)
        compiled = compile_module(definition, method)
        refuse_state(compiled, definition)
        save(compiled, module_path, definition)
        progress("row independence")
        frozen = plain_graph(torch.jit.load(str(module_path)))
        batching = rows.measure(frozen, signature, observed.cases)
        found: Layers | None = None
        if method == "script":
            progress("forward hooks")
            observable = compile_hooks(
                definition,
                compiled,
                signature,
                observed.cases,
                patterns=layers or definition.layers,
                independent=batching.independent,
            )
            found = observable.layers
            save(observable.module, module_path, definition)
        progress("parity in a fresh process")
        checks = _verify(module_path, definition, observed, names=names, method=method, found=found)
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
            notes=_notes(definition, observed, found),
        )
        progress("archive")
        archive, report, sample = outputs_of(definition.name, store)
        example = definition.examples[0]
        if found is not None:
            found.write(Path(folder))
        write_archive(
            archive,
            Path(folder),
            signature,
            certificate,
            example,
            activation_log=definition.activation_log,
        )
        report.write_text(render(signature, certificate, found), encoding="utf-8")
        write_sample(sample, signature, example)
    return Exported(archive, signature, certificate)


def _verify(
    module_path: Path,
    definition: Definition,
    observed: Reference,
    *,
    names: tuple[str, ...],
    method: Method,
    found: Layers | None,
) -> tuple[Check, ...]:
    try:
        checks = parity.check(module_path, observed, names, method)
    except ExportError as error:
        error.where = error.where or str(definition.source)
        raise
    if found is None or not found.hooked:
        return checks
    loaded = torch.jit.load(str(module_path))
    return (*checks, check_observed(loaded, found, definition, observed))


def _notes(definition: Definition, observed: Reference, found: Layers | None) -> tuple[str, ...]:
    notes = []
    if found is None:
        notes.append("a traced model has no compiled hooks: its activations cannot be observed")
    else:
        calls = functional_calls(definition.module)
        if calls:
            shown = ", ".join(calls[:_LINES_NAMED])
            rest = f" and {len(calls) - _LINES_NAMED} more" if len(calls) > _LINES_NAMED else ""
            notes.append(
                f"{shown}{rest}: an activation called as a function is no layer, so it is not "
                "observed; use the module of the same name"
            )
        notes += [f"layer {name} is not observed: {why}" for name, why in found.left_out.items()]
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
