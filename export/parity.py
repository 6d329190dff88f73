"""Parity: the saved module, loaded in a fresh process, answers as the eager one does."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from export.eager import Reference
from export.errors import ExportError
from export.tensors import compare
from export.torchscript import Method
from formats.certificate import Check

__all__ = ["check"]

_PROGRAM: Final = Path(__file__).with_name("reload.py")
_SECONDS: Final = 600.0
_FORMS: Final = {
    "loaded": "saved and loaded in a fresh process",
    "frozen": "frozen for serving, in a fresh process",
}


def check(
    module_path: Path, reference: Reference, names: tuple[str, ...], method: Method
) -> tuple[Check, ...]:
    """Run every case in a process that has none of the model's code, and compare.

    Args:
        module_path: the saved module.
        reference: the eager answers.
        names: of the outputs, for messages.
        method: how it was compiled; decides what to advise.

    Raises:
        ExportError: the module cannot be loaded there, or an answer differs; names the case.
    """
    answers = _fresh_process(module_path, reference)
    return tuple(_compare_all(form, answers[form], reference, names, method) for form in _FORMS)


def _fresh_process(module_path: Path, reference: Reference) -> dict[str, list[Any]]:
    inputs, outputs = module_path.with_name("cases.pt"), module_path.with_name("answers.pt")
    torch.save(reference.cases, inputs)
    root = str(_PROGRAM.parent.parent)
    command = [sys.executable, "-I", str(_PROGRAM), root, str(module_path), str(inputs)]
    try:
        done = subprocess.run(
            [*command, str(outputs)], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise ExportError(f"the saved module does not load in a fresh process: {last[0]}")
        answers: dict[str, list[Any]] = torch.load(outputs, weights_only=True)
        return answers
    except subprocess.TimeoutExpired:
        raise ExportError(f"the saved module did not answer within {_SECONDS:.0f} s") from None
    finally:
        inputs.unlink(missing_ok=True)
        outputs.unlink(missing_ok=True)


def _compare_all(
    form: str,
    answers: list[Any],
    reference: Reference,
    names: tuple[str, ...],
    method: Method,
) -> Check:
    largest = 0.0
    for number, (expected, actual) in enumerate(zip(reference.answers, answers, strict=True)):
        if isinstance(actual, str):
            detail = f"it raised: {actual}"
        else:
            by_path = dict(actual)
            ordered = [by_path[path] for path in reference.paths if path in by_path]
            difference = compare(expected, ordered, names)
            largest = max(largest, difference.largest)
            detail = difference.detail
        if detail:
            raise _mismatch(form, reference.cases[number], detail, method)
    return Check(
        name=f"parity: {_FORMS[form]}",
        passed=True,
        cases=len(answers),
        max_difference=largest,
        detail="equal to the eager module within tolerance",
    )


def _mismatch(form: str, case: tuple[Tensor, ...], detail: str, method: Method) -> ExportError:
    shown = "; ".join(
        f"{list(tensor.shape)} with mean {tensor.double().mean().item():.4g}" for tensor in case
    )
    if method == "trace":
        hint = (
            "a trace records one path through the model: leave --trace out, so that it is scripted"
        )
    else:
        hint = (
            "scripted and eager code differ here: look for Python that TorchScript reads otherwise"
        )
    return ExportError(
        f"the module {_FORMS[form]} answers differently on an input of shape {shown}: {detail}",
        hint=hint,
    )
