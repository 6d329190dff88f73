"""The stages in order: definition → TorchScript → signature → parity → rows → archive."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from engine import observed_graph, plain_graph
from export import baseline, parity, rows
from export.archive import MODULE_FILE, write_archive, write_sample
from export.branches import Branch, conditions, undecided
from export.cases import travelling
from export.definition import Definition
from export.eager import Reference, extended, reference
from export.errors import ExportError
from export.gradients import check as check_gradients
from export.inputs import drawn, search, variants
from export.instances import adopt_forwards, unshare
from export.notes import notes_on
from export.observed import check as check_observed
from export.observed import compile_hooks
from export.parity import Parity
from export.refusals import refuse_other_outputs, refuse_recomputed_weights
from export.report import render
from export.rounding import Rounding
from export.scripted_parts import uncounted
from export.signature import infer
from export.state import refuse_assignments, refuse_writes
from export.tensors import TOLERANCE
from export.torchscript import Method, compile_module, save
from formats.certificate import Batching, Certificate
from formats.layers import Layers
from formats.signature import Signature

__all__ = ["Exported", "eager_answers", "export_model", "outputs_of"]


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


def eager_answers(definition: Definition) -> tuple[Signature, Reference]:
    """Return the signature, and every input that is verified with what the module answers to it.

    Raises:
        ExportError: the module cannot be run, or answers what cannot be served.
    """
    observed = reference(definition, variants(definition))
    signature = infer(definition, observed)
    searched = search(definition, signature, observed.watch.constants)
    more = extended(definition, observed, drawn(definition, signature), searched)
    # Other inputs may show other shapes.
    return infer(definition, more), more


def outputs_of(name: str, store: Path) -> tuple[Path, Path, Path]:
    """Return the paths of a model's archive, report and sample request."""
    return store / f"{name}.mar", store / f"{name}.report.md", store / f"{name}.sample.json"


def export_model(
    definition: Definition,
    store: Path,
    method: Method = "script",
    *,
    layers: Sequence[str] = (),
    accept_mismatch: bool = False,
    progress: Callable[[str], Any] = lambda stage: None,
) -> Exported:
    """Compile, verify and archive a model.

    Args:
        definition: the model.
        store: an existing folder for the archive, the report and the sample request.
        method: "script" or "trace".
        layers: which layers to observe instead of the definition's own choice.
        accept_mismatch: archive a trace that answers some inputs otherwise than the eager module,
            and say so in the certificate.
        progress: called with the name of each stage as it begins.

    Raises:
        ExportError: some stage refused; nothing was written to the store.
    """
    progress("eager answers")
    refuse_recomputed_weights(definition, method)
    if method == "script":
        adopt_forwards(definition.module, str(definition.source))
    unshare(definition.module)
    signature, observed = eager_answers(definition)
    names = tuple(spec.name for spec in signature.outputs)
    with tempfile.TemporaryDirectory(prefix="vitrine-") as working:
        folder = Path(working)
        module_path = folder / MODULE_FILE
        progress(method)
        compiled = compile_module(definition, method)
        refuse_assignments(compiled.module, definition)
        refuse_other_outputs(compiled.module, definition, observed)
        save(compiled.module, module_path, definition)
        progress("row independence")
        frozen = plain_graph(torch.jit.load(str(module_path)))
        refuse_writes(frozen, definition)
        graph = frozen.graph if method == "script" else None
        branches = undecided(observed.watch.branches(), graph)
        unknown = [branch for branch in branches if not branch.inputs]
        hidden = uncounted(definition.module, frozen.graph)
        rounding = Rounding(definition.module)
        batching = _batching(
            frozen, signature, definition, observed, rounding, unknown=unknown, hidden=hidden
        )
        found: Layers | None = None
        if method == "script":
            progress("forward hooks")
            observable = compile_hooks(
                definition,
                compiled.module,
                signature,
                observed.cases,
                patterns=layers or definition.layers,
                independent=batching.independent,
            )
            found = observable.layers
            save(observable.module, module_path, definition)
        progress("parity in a fresh process")
        verified = _parity(
            module_path,
            definition,
            observed,
            names,
            rounding=rounding,
            baked=compiled.baked,
            accept=accept_mismatch,
        )
        observed = observed.without(verified.differing)
        loaded = torch.jit.load(str(module_path))
        checks = verified.checks
        if found is not None:
            looked = observed_graph(loaded, [layer for layer in found.hooked if layer.chosen])
            if found.hooked:
                checks += (check_observed(looked, found.hooked, definition, observed, rounding),)
            seen = baseline.measure(looked, found.hooked, definition, row_axis=signature.row_axis)
            seen.write(folder)
        progress("gradients")
        gradients, warning = check_gradients(loaded, definition, observed, names)
        notes = notes_on(definition, observed, found, loaded, unknown=unknown, hidden=hidden)
        certificate = Certificate(
            method=method,
            versions=_versions(),
            tolerance={
                name: pair
                for name, pair in TOLERANCE.items()
                if name in {spec.dtype for spec in signature.outputs}
            },
            checks=(*checks, gradients),
            batching=batching,
            conditions=conditions(branches),
            notes=(*filter(None, [verified.note, warning]), *notes),
        )
        progress("archive")
        if found is not None:
            found.write(folder)
        return _write(
            definition,
            store,
            folder,
            signature=signature,
            certificate=certificate,
            observed=observed,
            found=found,
        )


def _write(
    definition: Definition,
    store: Path,
    folder: Path,
    *,
    signature: Signature,
    certificate: Certificate,
    observed: Reference,
    found: Layers | None,
) -> Exported:
    archive, report, sample = outputs_of(definition.name, store)
    example = definition.examples[0]
    certificate = write_archive(
        archive,
        folder,
        signature,
        certificate,
        example=example,
        observed=observed,
        activation_log=definition.activation_log,
    )
    report.write_text(render(signature, certificate, found), encoding="utf-8")
    write_sample(sample, signature, example)
    return Exported(archive, signature, certificate)


def _parity(
    module_path: Path,
    definition: Definition,
    observed: Reference,
    names: tuple[str, ...],
    *,
    rounding: Rounding,
    baked: ExportError | None,
    accept: bool,
) -> Parity:
    try:
        verified = parity.check(module_path, definition, observed, names, rounding, accept=accept)
    except ExportError as error:
        if baked is not None:
            # Where the value was is a better place to look than the file as a whole.
            raise ExportError(
                f"{baked.what}; {error.what}", where=baked.where, hint=baked.hint
            ) from error
        raise
    if baked is not None and not accept:
        raise baked
    note = f"{baked.where}: {baked.what}; {verified.note}" if baked is not None else verified.note
    return replace(verified, note=note.removesuffix("; "))


def _versions() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _batching(
    frozen: Any,
    signature: Signature,
    definition: Definition,
    observed: Reference,
    rounding: Rounding,
    *,
    unknown: Sequence[Branch],
    hidden: Sequence[str],
) -> Batching:
    measured = rows.measure(frozen, signature, observed.cases, rounding)
    if measured.independent:
        # What `verify` will do elsewhere has to hold here.
        few = [observed.cases[number] for number in travelling(observed)]
        again = rows.measure(frozen, signature, few, rounding, thorough=False) if few else measured
        measured = measured if again.independent else again
    if measured.independent and unknown:
        measured = Batching(
            False,
            1,
            f"no input took {unknown[0]}, so whether rows influence each other there is not known",
        )
    if measured.independent and hidden:
        measured = Batching(
            False,
            1,
            f"{hidden[0]} is in a part that was scripted before, where it is not known "
            "which way an input took; without torch.jit.script in build() that is counted",
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
