"""The stages in order: definition → TorchScript → signature → parity → rows → archive."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from engine import plain_graph
from export import baseline, parity, rows
from export.archive import MODULE_FILE, write_archive, write_sample
from export.branches import Branch, undecided
from export.definition import Definition
from export.eager import Reference, extended, reference
from export.errors import ExportError
from export.functional import functional_calls
from export.gradients import check as check_gradients
from export.hooks import unshare
from export.inputs import drawn, search, variants
from export.observed import check as check_observed
from export.observed import compile_hooks
from export.report import render
from export.signature import infer
from export.tensors import TOLERANCE
from export.torchscript import Method, compile_module, refuse_state, save
from formats.certificate import Batching, Certificate, Check
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
    observed = extended(definition, observed, drawn(definition, signature), search(definition))
    names = tuple(spec.name for spec in signature.outputs)
    with tempfile.TemporaryDirectory(prefix="vitrine-") as folder:
        module_path = Path(folder) / MODULE_FILE
        progress(method)
        compiled = compile_module(definition, method)
        refuse_state(compiled, definition)
        save(compiled, module_path, definition)
        progress("row independence")
        frozen = plain_graph(torch.jit.load(str(module_path)))
        unknown = undecided(observed.watch.never(), frozen.graph)
        batching = _batching(frozen, signature, definition, observed, unknown=unknown)
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
        progress("gradients")
        loaded = torch.jit.load(str(module_path))
        gradients, warning = check_gradients(loaded, definition, observed, names)
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
            checks=(*checks, gradients),
            batching=batching,
            notes=(*filter(None, [warning]), *_notes(definition, observed, found, unknown)),
        )
        progress("archive")
        archive, report, sample = outputs_of(definition.name, store)
        example = definition.examples[0]
        if found is not None:
            found.write(Path(folder))
            loaded = torch.jit.load(str(module_path))
            baseline.measure(loaded, found.hooked, definition, row_axis=signature.row_axis).write(
                Path(folder)
            )
        certificate = write_archive(
            archive,
            Path(folder),
            signature,
            certificate,
            example=example,
            observed=observed,
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
        checks = parity.check(module_path, definition, observed, names, method)
    except ExportError as error:
        error.where = error.where or str(definition.source)
        raise
    if found is None or not found.hooked:
        return checks
    loaded = torch.jit.load(str(module_path))
    return (*checks, check_observed(loaded, found, definition, observed))


def _notes(
    definition: Definition, observed: Reference, found: Layers | None, unknown: Sequence[Branch]
) -> tuple[str, ...]:
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
    notes += _branch_notes(unknown)
    if observed.skipped:
        notes.append(
            f"{observed.skipped} of the made inputs were left out: the module raises on them"
        )
    return tuple(notes)


def _batching(
    frozen: Any,
    signature: Signature,
    definition: Definition,
    observed: Reference,
    *,
    unknown: Sequence[Branch],
) -> Batching:
    measured = rows.measure(frozen, signature, observed.cases)
    if measured.independent and unknown:
        measured = Batching(
            False,
            1,
            f"no input took {unknown[0]}, so whether rows influence each other there is not known",
        )
    declared = definition.batching
    if declared is None or declared.independent == measured.independent:
        return measured
    if declared.independent and not signature.row_axis:
        raise ExportError(
            f"BATCHING says that rows are independent, but {measured.reason}",
            where=str(definition.source),
        )
    return Batching(
        declared.independent,
        rows.MAX_ROWS if declared.independent else 1,
        f"the model file decides so ({declared.reason}) against what was measured: "
        f"{measured.reason}",
    )


def _branch_notes(unknown: Sequence[Branch]) -> list[str]:
    if not unknown:
        return []
    places = "; ".join(map(str, unknown[:_LINES_NAMED]))
    more = f" and {len(unknown) - _LINES_NAMED} more" if len(unknown) > _LINES_NAMED else ""
    return [
        f"no input took {places}{more}: what is computed there is not verified; add an example "
        "that takes it"
    ]
