"""Compare answers, request by request, and keep count."""

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from handlers.values import Array
from replay.subject import Answer

__all__ = ["Comparison", "Differences", "Labels"]

Labels = Mapping[str, Sequence[str]]
"""Names of the entries of an output's last axis, by output."""

_WORST: Final = 10


@dataclass(frozen=True)
class Differences:
    """How two answers to one request differ.

    Attributes:
        absolute: the largest absolute difference of any value; infinite where a value is not
            finite in one of them only, or where an output is missing or has another shape.
        relative: the largest relative difference, where the reference is not zero.
        beyond: whether any value differs by more than the tolerance.
        label: whether a row's label changed.
        argmax: whether the position of a row's greatest value changed, labels or not.
    """

    absolute: float = 0.0
    relative: float = 0.0
    beyond: bool = False
    label: bool = False
    argmax: bool = False


@dataclass
class Comparison:
    """Counts over all requests.

    Attributes:
        tolerance: a value may differ by this, plus this times the reference's magnitude.
        labels: the candidate's.
        reference_labels: those of what it is compared with; None where they are not known.
        requests: how many were compared.
        answered: how many of them both answered.
        differing: how many have a value beyond the tolerance or another label, or an error that
            the reference does not have, or the other way round.
        beyond, label, argmax: how many of `answered` differ so.
        absolute, relative: the largest of all.
        unfit: requests that do not fit the candidate's signature, though the reference answered;
            by the error's code.
        appeared: other errors that only the candidate has, by code.
        vanished: errors that only the reference has, by code.
        changed: errors of both, with different codes: "old → new".
        missing: outputs that the candidate lacks.
        added: outputs that only the candidate has.
    """

    tolerance: float
    labels: Labels = field(default_factory=dict)
    reference_labels: Labels | None = None
    requests: int = 0
    answered: int = 0
    differing: int = 0
    beyond: int = 0
    label: int = 0
    argmax: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    unfit: Counter[str] = field(default_factory=Counter)
    appeared: Counter[str] = field(default_factory=Counter)
    vanished: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    missing: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)
    _worst: list[tuple[tuple[float, float], int, str, str]] = field(default_factory=list)

    def add(self, request_id: str, reference: Answer, candidate: Answer) -> None:
        """Compare the answers to a request."""
        self.requests += 1
        if reference.error is None and candidate.error is None:
            self._add_answers(request_id, reference.outputs, candidate.outputs)
        elif reference.error is None:
            counts = self.appeared if candidate.fits else self.unfit
            counts[str(candidate.error)] += 1
            self._note(request_id, (math.inf, 1), f"error {candidate.error}")
        elif candidate.error is None:
            self.vanished[reference.error] += 1
            self._note(request_id, (math.inf, 0), f"no error {reference.error} any more")
        elif candidate.error != reference.error:
            self.changed[f"{reference.error} → {candidate.error}"] += 1

    @property
    def worst(self) -> list[dict[str, Any]]:
        """The requests that differ most: id and how."""
        found = sorted(self._worst, key=lambda one: (one[0], one[1]), reverse=True)
        return [{"request_id": request_id, "how": how} for _, _, request_id, how in found]

    def _add_answers(
        self, request_id: str, reference: Mapping[str, Array], candidate: Mapping[str, Array]
    ) -> None:
        self.answered += 1
        self.missing |= set(reference) - set(candidate)
        self.added |= set(candidate) - set(reference)
        found = self.differences(reference, candidate)
        self.absolute = max(self.absolute, found.absolute)
        self.relative = max(self.relative, found.relative)
        self.beyond += found.beyond
        self.label += found.label
        self.argmax += found.argmax
        if found.beyond or found.label:
            how = f"largest difference {found.absolute:.3g}" + ", another label" * found.label
            self._note(request_id, (found.absolute, found.label), how)

    def differences(
        self, reference: Mapping[str, Array], candidate: Mapping[str, Array]
    ) -> Differences:
        """Compare two answers, by the names of the outputs; an output that was added is none."""
        absolute = relative = 0.0
        beyond = label = argmax = False
        for name, old in reference.items():
            new = candidate.get(name)
            if new is None or new.shape != old.shape:
                absolute, beyond = math.inf, True
                continue
            apart, share, far = _values(old, new, self.tolerance)
            absolute, relative = max(absolute, apart), max(relative, share)
            beyond |= far
            if old.ndim > 1 and old.shape[-1] > 1 and old.dtype.kind == "f":
                moved, renamed = self._moved(name, old, new)
                argmax |= moved
                label |= renamed
        return Differences(absolute, relative, beyond, label, argmax)

    def _moved(self, name: str, old: Array, new: Array) -> tuple[bool, bool]:
        """Tell whether a row's greatest value stands elsewhere, and whether its label changed."""
        before, after = old.argmax(axis=-1), new.argmax(axis=-1)
        moved = bool((before != after).any())
        names = self.labels.get(name)
        if not names:
            return moved, False
        if self.reference_labels is None:
            return moved, moved
        former = self.reference_labels.get(name)
        if not former:
            return moved, False
        return moved, bool((np.asarray(former)[before] != np.asarray(names)[after]).any())

    def _note(self, request_id: str, rank: tuple[float, float], how: str) -> None:
        self.differing += 1
        # Of equal ones the first stay.
        entry = (rank, -self.requests, request_id, how)
        if len(self._worst) < _WORST:
            heapq.heappush(self._worst, entry)
        else:
            heapq.heappushpop(self._worst, entry)


def _values(old: Array, new: Array, tolerance: float) -> tuple[float, float, bool]:
    """Return the largest absolute and relative difference, and whether one is beyond."""
    before, after = old.astype(np.float64).ravel(), new.astype(np.float64).ravel()
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    if same.all():
        return 0.0, 0.0, False
    finite = np.isfinite(before) & np.isfinite(after)
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.where(same, 0.0, np.where(finite, np.abs(after - before), np.inf))
        size = np.abs(before)
        share = np.where(finite & (size > 0), apart / size, 0.0)
        beyond = ~same & ~(apart <= tolerance + tolerance * np.where(finite, size, 0.0))
    return float(apart.max()), float(share.max()), bool(beyond.any())
