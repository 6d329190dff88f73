"""The stages in order: definition → TorchScript → signature → parity → rows → engines → archive."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from engine import SUMMARY, make, observed_graph, plain_graph, processor
from export import aot, baseline, engines, parity, precision, rows, timing
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
from export.timing import Choice
from export.torchscript import Compiled, Method, compile_module, save
from export.work import Work, count
from formats.certificate import Batching, Certificate, Check
from formats.engines import AOT, ONEDNN, TORCHSCRIPT
from formats.engines import Engine as EngineFound
from formats.layers import Layers
from formats.signature import Signature

__all__ = ["AUTOMATIC", "FASTEST", "Exported", "eager_answers", "export_model", "outputs_of"]

AUTOMATIC: Final = "auto"
"""In place of an engine's name: choose by what the model computes, the same on every run."""
FASTEST: Final = "fastest"
"""In place of an engine's name: measure them, and serve with the fastest."""


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


def outputs_of(stem: str, store: Path) -> tuple[Path, Path, Path]:
    """Return the paths of a model's archive, report and sample request."""
    return store / f"{stem}.mar", store / f"{stem}.report.md", store / f"{stem}.sample.json"


def export_model(
    definition: Definition,
    store: Path,
    method: Method = "script",
    *,
    layers: Sequence[str] = (),
    accept_mismatch: bool = False,
    engine: str = AUTOMATIC,
    stem: str | None = None,
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
        engine: which engine serves where nobody says otherwise: a name, AUTOMATIC or FASTEST. One
            that is not certified leaves it to TorchScript, and the report says so.
        stem: what the files in the store are called; by default as the model.
        progress: called with the name of each stage as it begins.

    Raises:
        ExportError: some stage refused; nothing was written to the store.
    """
    if engine == AOT:
        aot.check_compiler()
    progress("eager answers")
    given = _prepared(definition, method)
    definition = precision.lowered(given, method)
    signature, observed = eager_answers(definition)
    names = tuple(spec.name for spec in signature.outputs)
    with tempfile.TemporaryDirectory(prefix="vitrine-") as working:
        folder = Path(working)
        module_path = folder / MODULE_FILE
        progress(method)
        compiled = _compiled(definition, method, observed, module_path)
        progress("row independence")
        frozen = plain_graph(torch.jit.load(str(module_path)))
        refuse_writes(frozen, definition)
        graph = frozen.graph if method == "script" else None
        branches = undecided(observed.watch.branches(), graph)
        unknown = [branch for branch in branches if not branch.inputs]
        hidden = uncounted(definition.module, frozen.graph)
        rounding = precision.rounding_of(definition)
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
        hooked = found.hooked if found is not None else None
        refused: tuple[EngineFound, ...] = ()
        if engine == AOT:
            progress("ahead-of-time compilation")
            refused = aot.compile_graphs(definition, signature, observed.paths, hooked, folder)
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
            checks += _look(
                loaded,
                found,
                definition,
                observed,
                rounding,
                row_axis=signature.row_axis,
                folder=folder,
            )
        progress("gradients")
        gradients, warning = check_gradients(loaded, definition, observed, names)
        notes = notes_on(definition, observed, found, loaded, unknown=unknown, hidden=hidden)
        progress("engines")
        work = count(definition)
        others, choice = _engines(
            engine,
            (*verified.engines, *refused),
            engines.Subject(
                loaded,
                definition,
                signature,
                observed,
                rounding,
                batching,
                hooked,
                folder,
            ),
            work,
        )
        certificate = Certificate(
            method=method,
            versions=_versions(),
            tolerance=_tolerance(signature, definition),
            checks=(*checks, gradients),
            batching=batching,
            conditions=conditions(branches),
            notes=(*filter(None, [verified.note, warning]), *notes),
            precision=precision.cost(loaded, given, observed, signature),
            engines=others,
        )
        progress("archive")
        if found is not None:
            found.write(folder)
        return _write(
            definition,
            outputs_of(stem or definition.name, store),
            folder,
            signature=signature,
            certificate=certificate,
            observed=observed,
            found=found,
            choice=choice,
            work=work,
        )


def _prepared(definition: Definition, method: Method) -> Definition:
    refuse_recomputed_weights(definition, method)
    if method == "script":
        adopt_forwards(definition.module, str(definition.source))
    unshare(definition.module)
    return definition


def _compiled(
    definition: Definition, method: Method, observed: Reference, module_path: Path
) -> Compiled:
    compiled = compile_module(definition, method)
    refuse_assignments(compiled.module, definition)
    refuse_other_outputs(compiled.module, definition, observed)
    save(compiled.module, module_path, definition)
    return compiled


def _look(
    loaded: Any,
    found: Layers,
    definition: Definition,
    observed: Reference,
    rounding: Rounding,
    *,
    row_axis: bool,
    folder: Path,
) -> tuple[Check, ...]:
    """Check the observed graph, and write down what its layers look like."""
    graph = observed_graph(loaded, [layer for layer in found.hooked if layer.chosen])
    summary = getattr(graph, SUMMARY)
    measured = baseline.measure(graph, found.hooked, definition, row_axis=row_axis)
    units = baseline.active_units(loaded, found.hooked, definition, row_axis=row_axis)
    replace(measured, units=units).write(folder)
    if not found.hooked:
        return ()
    tolerance = precision.STATISTICS_TOLERANCE[definition.precision]
    return (
        check_observed(summary, found.hooked, definition, observed, rounding, tolerance=tolerance),
    )


def _engines(
    wanted: str, found: Sequence[EngineFound], subject: engines.Subject, work: Work
) -> tuple[tuple[EngineFound, ...], Choice]:
    """Certify engines and choose the one that serves; time them if that is to decide."""
    results, offered = engines.certify(found, subject)
    if AOT not in offered:
        aot.remove(subject.folder)
    if wanted == AUTOMATIC:
        wanted = ONEDNN if work.convolves_much else TORCHSCRIPT
    if wanted != FASTEST or not offered:
        return results, Choice(wanted if wanted in offered else TORCHSCRIPT)
    signature = subject.signature
    timings = timing.time_calls(
        {TORCHSCRIPT: make(TORCHSCRIPT, subject.module, None).plain}
        | {name: made.plain for name, made in offered.items()},
        subject.definition.examples[0],
        timing.sizes_of(signature, subject.batching),
        row_axis=signature.row_axis,
    )
    return results, Choice(timing.fastest(timings), tuple(timings))


def _tolerance(signature: Signature, definition: Definition) -> dict[str, tuple[float, float]]:
    dtypes = {spec.dtype for spec in signature.outputs}
    # What is computed in less goes out as float32 and is no more exact for it.
    lowered = TOLERANCE.get(definition.precision)
    return {
        name: lowered if lowered and name == "float32" else pair
        for name, pair in TOLERANCE.items()
        if name in dtypes
    }


def _write(
    definition: Definition,
    outputs: tuple[Path, Path, Path],
    folder: Path,
    *,
    signature: Signature,
    certificate: Certificate,
    observed: Reference,
    found: Layers | None,
    choice: Choice,
    work: Work,
) -> Exported:
    archive, report, sample = outputs
    example = definition.examples[0]
    certificate = write_archive(
        archive,
        folder,
        signature,
        certificate,
        example=example,
        observed=observed,
        records={
            "activation_log": definition.activation_log,
            "recording": definition.recording,
        },
        engine=choice.engine,
        work=work,
    )
    report.write_text(render(signature, certificate, found, choice), encoding="utf-8")
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
        verified = parity.check(
            module_path,
            definition,
            observed,
            names,
            rounding,
            accept=accept,
            engines=engines.tried(module_path.parent),
        )
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
        "processor": processor(),
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
