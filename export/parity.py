"""Parity: the saved module, loaded in a fresh process, answers as the eager one does."""

import subprocess
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from engine import plain_graph
from export.definition import Definition
from export.eager import Reference, answer
from export.errors import ExportError
from export.inputs import Example
from export.rounding import Rounding
from export.shrink import show, shrink
from export.tensors import compare
from formats.certificate import Check
from formats.engines import Engine

__all__ = ["Parity", "check"]

_PROGRAM: Final = Path(__file__).with_name("reload.py")
_SECONDS: Final = 600.0
_FORMS: Final = {
    "loaded": "saved and loaded in a fresh process (not optimised)",
    "frozen": "frozen for serving, in a fresh process",
}


@dataclass(frozen=True)
class Parity:
    """What came of the comparison.

    Attributes:
        checks: one for each form of the module.
        differing: numbers of the cases that some form answers differently.
        note: one such case in words, made small; empty when there is none.
        engines: what came of each other engine.
    """

    checks: tuple[Check, ...]
    differing: frozenset[int]
    note: str
    engines: tuple[Engine, ...] = ()


def check(
    module_path: Path,
    definition: Definition,
    reference: Reference,
    names: tuple[str, ...],
    rounding: Rounding,
    *,
    accept: bool = False,
    engines: Sequence[str] = (),
) -> Parity:
    """Run every case in a process that has none of the model's code, and compare.

    Args:
        module_path: the saved module.
        definition: the eager module, to find a smaller input with where one differs.
        reference: the eager answers.
        names: of the outputs, for messages.
        rounding: how far answers move for no reason.
        accept: whether answers may differ, as long as some do not.
        engines: other engines than TorchScript to try; none of them can make this fail.

    Raises:
        ExportError: the module cannot be loaded there, or an answer differs; names the case.
    """
    try:
        answers, others = _fresh_process(module_path, reference, engines)
    except ExportError as error:
        error.where = str(definition.source)
        raise
    checks = []
    differing: set[int] = set()
    note = ""
    for form in _FORMS:
        checked, fallen = _compare_all(form, answers[form], reference, names, rounding)
        if fallen:
            mismatch = _mismatch(form, module_path, definition, reference, rounding, fallen=fallen)
            differing |= fallen.keys()
            note = note or f"{len(fallen)} of {checked.cases} inputs fell: {mismatch.what}"
            if not accept or len(differing) == len(reference.cases):
                raise mismatch
        checks.append(checked)
    tried = tuple(
        _engine(name, others[name], reference, names, rounding, known=differing) for name in engines
    )
    return Parity(tuple(checks), frozenset(differing), note, tried)


def _fresh_process(
    module_path: Path, reference: Reference, engines: Sequence[str]
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the answers of each form of the module, and those of each engine or why not."""
    inputs, outputs = module_path.with_name("cases.pt"), module_path.with_name("answers.pt")
    more = {name: outputs.with_name(f"{outputs.name}.{name}") for name in engines}
    torch.save(reference.cases, inputs)
    root = str(_PROGRAM.parent.parent)
    paths = [str(module_path), str(inputs), str(outputs)]
    command = [sys.executable, "-I", str(_PROGRAM), root, *paths, *engines]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        ended = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        # Whatever comes after the first file is the fault of an engine, not of the module.
        if done.returncode != 0 and not (engines and outputs.exists()):
            raise ExportError(f"the saved module does not load in a fresh process: {ended}")
        answers: dict[str, list[Any]] = torch.load(outputs, weights_only=True)
        return answers, {
            name: torch.load(path, weights_only=True)
            if path.exists()
            else f"the process that ran it ended: {ended}"
            for name, path in more.items()
        }
    except subprocess.TimeoutExpired:
        raise ExportError(f"the saved module did not answer within {_SECONDS:.0f} s") from None
    finally:
        for path in (inputs, outputs, *more.values()):
            path.unlink(missing_ok=True)


def _engine(
    name: str,
    answers: list[Any] | str,
    reference: Reference,
    names: tuple[str, ...],
    rounding: Rounding,
    *,
    known: Container[int],
) -> Engine:
    """Compare an engine's answers, but for cases that are known to be answered otherwise."""
    if isinstance(answers, str):
        return Engine(name, False, 0.0, answers)
    checked, fallen = _compare_all("frozen", answers, reference, names, rounding)
    wrong = [detail for number, detail in fallen.items() if number not in known]
    return Engine(
        name,
        not wrong,
        checked.max_difference,
        f"{len(wrong)} of {checked.cases} inputs fell: {wrong[0]}"
        if wrong
        else f"{checked.cases} inputs answered as by the eager module, in a fresh process",
    )


def _compare_all(
    form: str,
    answers: list[Any],
    reference: Reference,
    names: tuple[str, ...],
    rounding: Rounding,
) -> tuple[Check, dict[int, str]]:
    largest = 0.0
    fallen = {}
    for number, (expected, actual) in enumerate(zip(reference.answers, answers, strict=True)):
        if isinstance(actual, str):
            detail = f"it raised: {actual}"
        else:
            by_path = dict(actual)
            ordered = [by_path[path] for path in reference.paths if path in by_path]
            noise = partial(rounding, reference.cases[number])
            difference = compare(expected, ordered, names, noise)
            largest = max(largest, difference.largest)
            detail = difference.detail
        if detail:
            fallen[number] = detail
    return Check(
        name=f"parity: {_FORMS[form]}",
        passed=not fallen,
        cases=len(answers),
        max_difference=largest,
        detail=f"{len(fallen)} inputs are answered otherwise than by the eager module"
        if fallen
        else "equal to the eager module within tolerance",
    ), fallen


def _mismatch(
    form: str,
    module_path: Path,
    definition: Definition,
    reference: Reference,
    rounding: Rounding,
    *,
    fallen: dict[int, str],
) -> ExportError:
    number, detail = next(iter(fallen.items()))
    module = torch.jit.load(str(module_path)).eval()
    module = plain_graph(module) if form == "frozen" else module

    def differs(case: Example) -> str:
        try:
            wanted = answer(definition.module, case)
        except Exception:
            return ""
        try:
            got = dict(answer(module, case))
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return f"it raised: {lines[-1] if lines else type(error).__name__}"
        paths = [path for path, _ in wanted]
        ordered = [got[path] for path in paths if path in got]
        expected = [own for _, own in wanted]
        noise = partial(rounding, case)
        return compare(expected, ordered, [p or "output" for p in paths], noise).detail

    case = reference.cases[number]
    if differs(case):
        case = shrink(case, lambda candidate: bool(differs(candidate)))
        detail = differs(case) or detail
    shown = show(case, tuple(option.name for option in definition.inputs))
    return ExportError(
        f"the module {_FORMS[form]} answers differently: {detail}; the smallest such input found "
        f"is {shown}",
        where=str(definition.source),
        hint="compiled and eager code differ here: look for Python that TorchScript reads "
        "otherwise; a trace records one path, and the sizes it saw",
    )
