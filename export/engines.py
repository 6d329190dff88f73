"""Other engines than the frozen TorchScript graph: held against it before one may serve."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from engine import Engine, make
from export import observed, rows
from export.cases import travelling
from export.definition import Definition
from export.eager import Reference, answer
from export.errors import ExportError
from export.inputs import Example
from export.precision import STATISTICS_TOLERANCE, rounded
from export.rounding import Rounding
from export.tensors import compare
from formats import engines as formats
from formats.certificate import Batching
from formats.compiled import PLAIN_FILE
from formats.engines import AOT, ONEDNN
from formats.layers import Layer
from formats.signature import Signature

__all__ = ["Subject", "certify", "tried"]

_STRANGE: Final = (math.nan, math.inf, -math.inf)


@dataclass(frozen=True)
class Subject:
    """What an engine is certified on.

    Attributes:
        module: the saved module, loaded.
        definition: the eager module.
        signature: its interface.
        reference: the eager answers.
        rounding: how far these move for no reason.
        batching: what was certified of its rows.
        layers: those hooked, in the order of layers.json; None for a traced module.
        folder: where compiled graphs are.
    """

    module: Any
    definition: Definition
    signature: Signature
    reference: Reference
    rounding: Rounding
    batching: Batching
    layers: Sequence[Layer] | None
    folder: Path

    @property
    def names(self) -> list[str]:
        """Names of the outputs."""
        return [spec.name for spec in self.signature.outputs]


def tried(folder: Path) -> tuple[str, ...]:
    """Return the engines to try: the compiled graphs, too, if they are in the folder."""
    return (ONEDNN, AOT) if (folder / PLAIN_FILE).exists() else (ONEDNN,)


def certify(
    found: Sequence[formats.Engine], subject: Subject
) -> tuple[tuple[formats.Engine, ...], dict[str, Engine]]:
    """Check the engines whose answers held in a fresh process in everything else that serves.

    That is: answers to inputs that hold NaN or infinities, independent rows where those are
    certified, and the statistics of hooked layers.

    Returns:
        What was found of each, and those that may serve, made.
    """
    results = []
    made: dict[str, Engine] = {}
    for one in found:
        result = one
        if one.offered:
            try:
                engine = _made(one.name, subject)
                said = [check(engine, subject) for check in _CHECKS]
            except Exception as error:  # whatever torch says of it: TorchScript serves then
                words = error.what if isinstance(error, ExportError) else _first_line(error)
                result = replace(one, offered=False, detail=words)
            else:
                made[one.name] = engine
                result = replace(one, detail="; ".join([one.detail, *filter(None, said)]))
        results.append(result)
    return tuple(results), made


def _made(name: str, subject: Subject) -> Engine:
    chosen = None
    if subject.layers is not None:
        chosen = [layer for layer in subject.layers if layer.chosen]
    return make(name, subject.module, chosen, subject.folder)


def _strange_values(engine: Engine, subject: Subject) -> str:
    """Fall where a value that is not finite would be hidden, or made."""
    base = make(formats.TORCHSCRIPT, subject.module, None)
    tried = 0
    for case in _strange_cases(subject.definition.examples[0]):
        expected: list[Tensor] = []
        # An input that the model refuses is answered with an error.
        with suppress(Exception):
            expected = [tensor for _, tensor in answer(base.plain, case)]
        if not expected:
            continue
        actual = [tensor for _, tensor in answer(engine.plain, case)]
        for name, left, right in zip(subject.names, expected, actual, strict=True):
            if not torch.equal(left.isfinite(), right.isfinite()):
                raise ExportError(
                    f"output {name!r} is finite where the frozen graph's is not, or the reverse, "
                    "for an input that holds NaN or infinity"
                )
        pair = [_comparable(one, subject.definition.precision) for one in (expected, actual)]
        difference = compare(pair[0], pair[1], subject.names)
        if not difference.equal:
            raise ExportError(f"beside NaN or infinity, {difference.detail}")
        tried += 1
    return "NaN and infinities come through" if tried else ""


def _comparable(answers: Sequence[Tensor], precision: str) -> list[Tensor]:
    # Whether it is NaN or an infinity depends on the order of a sum.
    finite = [
        tensor.masked_fill(~tensor.isfinite(), 0) if tensor.is_floating_point() else tensor
        for tensor in answers
    ]
    return rounded(finite) if precision else finite


def _strange_cases(example: Example) -> Iterator[Example]:
    for number, tensor in enumerate(example):
        if not tensor.is_floating_point():
            continue
        for value in _STRANGE:
            for everywhere in (False, True):
                filled = tensor.clone(memory_format=torch.contiguous_format)
                flat = filled.view(-1)
                flat[slice(None) if everywhere else slice(0, 1)] = value
                yield (*example[:number], filled, *example[number + 1 :])


def _rows(engine: Engine, subject: Subject) -> str:
    few = [subject.reference.cases[number] for number in travelling(subject.reference)]
    if not (subject.batching.independent and few):
        return ""
    measured = rows.measure(engine.plain, subject.signature, few, subject.rounding, thorough=False)
    if not measured.independent and subject.definition.batching is not None:
        return "the model file decides that rows are independent"
    if not measured.independent:
        raise ExportError(f"its rows are not independent: {measured.reason}")
    return f"rows the same alone and among up to {measured.max_rows}"


def _statistics(engine: Engine, subject: Subject) -> str:
    if engine.summary is None or not subject.layers:
        return ""
    checked = observed.check(
        engine.summary,
        subject.layers,
        subject.definition,
        subject.reference,
        subject.rounding,
        tolerance=STATISTICS_TOLERANCE[subject.definition.precision],
    )
    return f"statistics of its observed graph {checked.detail}, within {checked.max_difference:.3g}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


_CHECKS: Final[tuple[Callable[[Engine, Subject], str], ...]] = (
    _strange_values,
    _statistics,
    _rows,
)
