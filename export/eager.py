"""The module as Python runs it: the answers that every other form is compared with."""

import time
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from export.branches import BranchWatch
from export.definition import Definition
from export.errors import ExportError
from export.inputs import Example
from export.state import refuse_change, state
from export.tensors import compare, dtype_name, leaves

__all__ = ["Reference", "answer", "extended", "reference"]

_SEARCH_SECONDS: Final = 5.0
_SEARCH_CASES: Final = 500


@dataclass(frozen=True)
class Reference:
    """What the eager module answers.

    Attributes:
        cases: the inputs it took.
        paths: where the flat outputs are in what the module returns; the same for every case.
        answers: per case, its flat outputs.
        refused: made inputs that the module raised on, or answered with other outputs.
        watch: which ways the branches of the module's own code went in these cases.
    """

    cases: list[Example]
    paths: list[str]
    answers: list[list[Tensor]]
    refused: list[Example]
    watch: BranchWatch

    def without(self, numbers: Container[int]) -> "Reference":
        """Return the same without some cases."""
        kept = [number for number in range(len(self.cases)) if number not in numbers]
        return replace(
            self,
            cases=[self.cases[number] for number in kept],
            answers=[self.answers[number] for number in kept],
        )


def answer(module: Any, example: Example) -> list[tuple[str, Tensor]]:
    """Run a module on a copy of the example, without gradients; return its flat outputs."""
    with torch.no_grad():
        return leaves(module(*(tensor.clone() for tensor in example)))


def reference(definition: Definition, cases: Iterable[Example]) -> Reference:
    """Answer every case twice over: once for the answer, the first also for determinism.

    Raises:
        ExportError: the module raises on one of its own examples, answers the same input
            differently the second time, or returns what cannot be served.
    """
    watch = BranchWatch()
    before = state(definition.module)
    paths: list[str] = []
    kept: list[Example] = []
    answers: list[list[Tensor]] = []
    refused: list[Example] = []
    for number, case in enumerate(cases):
        try:
            with watch.one_input() as seen:
                flat = answer(definition.module, case)
        except ExportError as error:
            error.where = str(definition.source)
            raise
        except Exception as error:
            if number < len(definition.examples):
                raise _refused(definition, number, case, error) from error
            refused.append(case)
            continue
        watch.keep(seen)
        paths = paths or [path for path, _ in flat]
        kept.append(case)
        answers.append(_in_order(flat, paths, definition))
    refuse_change(definition, before)
    _check_deterministic(definition, answers[0])
    return Reference(kept, paths, answers, refused, watch)


def extended(
    definition: Definition, before: Reference, drawn: Iterable[Example], more: Iterator[Example]
) -> Reference:
    """Add cases to a reference: some for their own sake, others for a branch that they take.

    Args:
        definition: the module.
        before: its reference.
        drawn: cases that are kept wherever the module takes them and returns what it returns
            otherwise.
        more: without end; only cases that take a branch as none did before are kept. They are
            drawn until every branch was taken, or for a few seconds.

    Raises:
        ExportError: the module changed.
    """
    watch = before.watch
    untouched = state(definition.module)
    cases, answers = list(before.cases), list(before.answers)

    def add(case: Example, *, only_new: bool) -> bool:
        by_path: dict[str, Tensor] = {}
        with suppress(Exception), watch.one_input() as seen:
            by_path = dict(answer(definition.module, case))
        if by_path.keys() != set(before.paths) or (only_new and not watch.is_new(seen)):
            return False
        watch.keep(seen)
        cases.append(case)
        answers.append([by_path[path] for path in before.paths])
        return True

    refused = [*before.refused, *(case for case in drawn if not add(case, only_new=False))]
    deadline = time.monotonic() + _SEARCH_SECONDS
    for _ in range(_SEARCH_CASES):
        if all(branch.raises for branch in watch.never()) or time.monotonic() > deadline:
            break
        add(next(more), only_new=True)
    refuse_change(definition, untouched)
    return replace(before, cases=cases, answers=answers, refused=refused)


def _refused(definition: Definition, number: int, case: Example, error: Exception) -> ExportError:
    shown = ", ".join(f"{dtype_name(tensor.dtype)}{list(tensor.shape)}" for tensor in case)
    return ExportError(
        f"the module raises on example {number} ({shown}): {type(error).__name__}: {error}",
        where=str(definition.source),
        hint="an example must be an input that the module accepts, dtype included "
        "(NumPy's default is float64, a module's float32)",
    )


def _in_order(
    flat: list[tuple[str, Tensor]], paths: list[str], definition: Definition
) -> list[Tensor]:
    by_path = dict(flat)
    if by_path.keys() != set(paths) or not paths:
        raise ExportError(
            f"the module returns {', '.join(by_path) or 'nothing'} for one input and "
            f"{', '.join(paths) or 'nothing'} for another",
            where=str(definition.source),
            hint="return the same outputs, at least one, whatever the input",
        )
    return [by_path[path] for path in paths]


def _check_deterministic(definition: Definition, first: list[Tensor]) -> None:
    again = answer(definition.module, definition.examples[0])
    names = [name or "output" for name, _ in again]
    difference = compare(first, [tensor for _, tensor in again], names)
    if not difference.equal:
        raise ExportError(
            f"the module answers the same input differently the second time: {difference.detail}",
            where=str(definition.source),
            hint="a random or stateful module cannot be verified: fix its seed, keep no state "
            "between calls, or leave that part outside the exported module; F.dropout is random "
            "unless called with training=self.training",
        )
