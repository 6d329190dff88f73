"""`python -m export verify FILE.mar`: does what was certified hold on this machine?"""

import platform
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from engine import make, observed_graph, plain_graph, processor, set_mode
from export import rows
from export.archive import MODULE_FILE
from export.cases import FILE_NAME as CASES_FILE
from export.cases import read_cases
from export.eager import answer
from export.errors import ExportError
from export.inputs import Example
from export.observed import apart
from export.precision import STATISTICS_TOLERANCE
from export.rounding import Rounding
from export.tensors import compare, dtype_name, leaves
from formats.certificate import FILE_NAME, Certificate
from formats.document import FormatError
from formats.integrity import check_archive, check_files
from formats.layers import FILE_NAME as LAYERS_FILE
from formats.layers import Layer, Layers
from formats.observation import OFF, RAW, read, totals
from formats.signature import Signature, TensorSpec

__all__ = ["Verdict", "verify"]

_DECLARED: Final = "the model file decides"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check.

    Attributes:
        name: what was checked.
        held: whether it holds here.
        detail: on what, or what fell.
    """

    name: str
    held: bool
    detail: str


class _Fell(Exception):
    """A check does not hold; the text says why."""


@dataclass(frozen=True)
class _Subject:
    """An unpacked archive, loaded."""

    folder: Path
    signature: Signature
    certificate: Certificate
    loaded: Any
    plain: Any
    cases: list[Example]
    answers: list[list[Tensor]]
    rounding: Rounding

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.signature.outputs]


def verify(archive: Path, folder: Path) -> Iterator[Verdict]:
    """Check an archive again, without the model's code.

    Args:
        archive: a `.mar` made by Vitrine.
        folder: an empty folder to unpack it into.

    Yields:
        One verdict for each check. A damaged archive gets no further than the first.

    Raises:
        ExportError: the file is missing or is not such an archive.
    """
    _unpack(archive, folder)
    try:
        check_archive(archive)
        certificate = Certificate.read(folder)
        check_files(folder, certificate.files)
        signature = Signature.read(folder)
    except FormatError as error:
        yield Verdict("digests", False, str(error))
        return
    yield Verdict(
        "digests",
        True,
        f"{len(certificate.files)} files, and the archive as a whole, are what was certified",
    )
    there, here = certificate.versions.get("torch", "?"), str(torch.__version__)
    yield Verdict(
        "versions",
        True,
        f"certified with torch {there} on {certificate.versions.get('machine', '?')}, "
        f"here torch {here} on {platform.machine()}",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            subject = _load(folder, signature, certificate)
        except Exception as error:  # whatever another version of torch says of the file
            yield Verdict("load", False, _first_line(error))
            return
        for name, check in _CHECKS.items():
            try:
                yield Verdict(name, True, check(subject))
            except _Fell as fell:
                yield Verdict(name, False, str(fell))
            except Exception as error:  # the model's own, on its own verified inputs
                yield Verdict(name, False, f"{type(error).__name__}: {_first_line(error)}")


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as content:
            names = content.namelist()
            if FILE_NAME not in names:
                raise ExportError(
                    f"not an archive of Vitrine, or cut short: no {FILE_NAME}", where=str(archive)
                )
            for name in names:
                # What cannot be unpacked is missing, and the digests say so.
                try:
                    content.extract(name, folder)
                except Exception:
                    (folder / name).unlink(missing_ok=True)
    except FileNotFoundError:
        raise ExportError("there is no such file", where=str(archive)) from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ExportError(
            f"not an archive of Vitrine, or cut short: {error}", where=str(archive)
        ) from None


def _load(folder: Path, signature: Signature, certificate: Certificate) -> _Subject:
    loaded = torch.jit.load(str(folder / MODULE_FILE), map_location="cpu").eval()
    cases, answers = read_cases(folder / CASES_FILE, signature)
    return _Subject(
        folder,
        signature,
        certificate,
        loaded,
        plain_graph(loaded),
        cases,
        answers,
        Rounding(loaded, torch.bfloat16 if certificate.precision else None),
    )


def _signature(subject: _Subject) -> str:
    specs = (*subject.signature.inputs, *subject.signature.outputs)
    for case in subject.cases:
        tensors = (*case, *(tensor for _, tensor in answer(subject.plain, case)))
        if len(tensors) != len(specs):
            raise _Fell(f"{len(specs)} inputs and outputs became {len(tensors)}")
        for spec, tensor in zip(specs, tensors, strict=True):
            if not _fits(tensor, spec):
                raise _Fell(
                    f"{spec.name!r} is {dtype_name(tensor.dtype)}{list(tensor.shape)}, "
                    f"expected {spec}"
                )
    return f"inputs and outputs of {len(subject.cases)} cases are as declared"


def _fits(tensor: Tensor, spec: TensorSpec) -> bool:
    return (
        dtype_name(tensor.dtype) == spec.dtype
        and tensor.ndim == len(spec.shape)
        and all(size in (-1, own) for size, own in zip(spec.shape, tensor.shape, strict=True))
    )


def _parity(module: Any, subject: _Subject) -> str:
    largest = 0.0
    for case, expected in zip(subject.cases, subject.answers, strict=True):
        actual = [tensor for _, tensor in answer(module, case)]
        difference = compare(expected, actual, subject.names, partial(subject.rounding, case))
        if not difference.equal:
            raise _Fell(difference.detail)
        largest = max(largest, difference.largest)
    return f"{len(subject.cases)} cases, largest difference {largest:.3g}"


def _activations(subject: _Subject) -> str:
    if not (subject.folder / LAYERS_FILE).exists():
        return "no layer of it is observed"
    layers = Layers.read(subject.folder).hooked
    chosen = [layer for layer in layers if layer.chosen]
    if not chosen:
        return "no layer of it is observed"
    observed = observed_graph(subject.loaded, chosen, subject.plain)
    precision = subject.certificate.precision
    tolerance = STATISTICS_TOLERANCE[precision.dtype if precision else ""]
    largest = 0.0
    for case, expected in zip(subject.cases, subject.answers, strict=True):
        with torch.no_grad():
            result, codes, joined = observed.summary(*(tensor.clone() for tensor in case))
        difference = compare(
            expected,
            [leaf for _, leaf in leaves(result)],
            subject.names,
            partial(subject.rounding, case),
        )
        if not difference.equal:
            raise _Fell(f"the observed graph: {difference.detail}")
        raw = _raw(subject.loaded, layers, chosen, case)
        for one, statistics in totals(layers, codes, joined.tolist()):
            if statistics is None:
                continue
            moved = apart(statistics, raw[one.key])
            if not moved <= tolerance:
                raise _Fell(f"statistics of layer {one.key} differ from NumPy's by {moved:.3g}")
            largest = max(largest, moved)
    return (
        f"statistics of {len(chosen)} layers equal NumPy's on {len(subject.cases)} cases, "
        f"largest difference {largest:.3g}"
    )


def _raw(
    module: Any, layers: Sequence[Layer], chosen: Sequence[Layer], case: Example
) -> dict[str, "np.ndarray[Any, Any]"]:
    """Return what the chosen layers put out, by activation key."""
    set_mode(module, chosen, RAW)
    try:
        with torch.no_grad():
            _, codes, found = module.observe(*(tensor.clone() for tensor in case))
    finally:
        set_mode(module, [], OFF)
    tensors = [tensor for layer in found for tensor in layer]
    values = {}
    for one in read(layers, codes, RAW):
        tensor = tensors[one.first].detach()
        plain = tensor.abs() if tensor.is_complex() else tensor
        values[one.key] = plain.double().numpy()
    return values


def _engines(subject: _Subject) -> str:
    names = [one.name for one in subject.certificate.engines if one.offered]
    if not names:
        return "none but TorchScript was certified"
    there, here = subject.certificate.versions.get("processor", "?"), processor()
    if there != here:
        return f"{', '.join(names)}: not used on this processor, {here}"
    said = []
    for name in names:
        made = make(name, subject.loaded, None, subject.folder)
        try:
            said.append(f"{name}: {_parity(made.plain, subject)}")
        except _Fell as fell:
            raise _Fell(f"{name}: {fell}") from None
    return "; ".join(said)


def _rows(subject: _Subject) -> str:
    certified = subject.certificate.batching
    if not subject.cases:
        return "no case was small enough to travel"
    measured = rows.measure(
        subject.plain, subject.signature, subject.cases, subject.rounding, thorough=False
    )
    if certified.independent and not measured.independent:
        if certified.reason.startswith(_DECLARED):
            return certified.reason
        raise _Fell(f"certified as independent, but {measured.reason}")
    if not certified.independent and measured.independent:
        # Fewer cases travel than were measured, and one at a time is always right.
        return f"served one at a time, as certified ({certified.reason})"
    return measured.reason


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


_CHECKS: Final[dict[str, Callable[[_Subject], str]]] = {
    "signature": _signature,
    "parity, loaded": lambda subject: _parity(subject.loaded, subject),
    "parity, frozen": lambda subject: _parity(subject.plain, subject),
    "activations": _activations,
    "row independence": _rows,
    "engines": _engines,
}
