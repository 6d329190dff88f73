"""Replay recordings on one archive, or on two, and compare."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from formats.recording import Recording, Tensor
from handlers.values import Array
from replay.answers import Comparison
from replay.lines import Skipped, batches
from replay.subject import Answer, Subject

__all__ = ["Replayed", "replay"]


@dataclass
class Replayed:
    """What came of it.

    Attributes:
        comparison: of the answers.
        skipped: lines that were left out.
        answered_by: how many requests each version had answered when they were recorded.
    """

    comparison: Comparison
    skipped: Skipped = field(default_factory=Skipped)
    answered_by: Counter[str] = field(default_factory=Counter)


def replay(
    files: list[Path],
    model: str,
    candidate: Subject,
    against: Subject | None,
    *,
    tolerance: float,
    progress: Callable[[int], Any] = lambda requests: None,
) -> Replayed:
    """Run recorded requests on a candidate, and compare with what was answered.

    Args:
        files: the recordings.
        model: whose requests are replayed, by name.
        candidate: the new archive.
        against: the old archive, which answers the same requests; None for the recorded answers.
        tolerance: see `Comparison`.
        progress: called with the number of requests so far.
    """
    labels = None if against is None else labels_of(against)
    found = Replayed(Comparison(tolerance, labels_of(candidate), labels))
    for batch in batches(files, model, found.skipped):
        pairs = list(_references(batch, against, found.skipped))
        new = candidate.answer([recording for recording, _ in pairs])
        for (recording, reference), answer in zip(pairs, new, strict=True):
            found.answered_by[recording.model_version] += 1
            found.comparison.add(recording.request_id, reference, answer)
        progress(found.comparison.requests)
    return found


def labels_of(subject: Subject) -> dict[str, tuple[str, ...]]:
    """Return the labels of an archive's outputs, by output."""
    return {spec.name: spec.labels for spec in subject.model.signature.outputs if spec.labels}


def _references(
    batch: Sequence[Recording], against: Subject | None, skipped: Skipped
) -> Iterator[tuple[Recording, Answer]]:
    if against is not None:
        yield from zip(batch, against.answer(batch), strict=True)
        return
    for recording in batch:
        try:
            outputs = {one.name: _array(one) for one in recording.outputs}
        except (ValueError, TypeError, OverflowError):
            skipped.broken += 1
            continue
        yield recording, Answer(outputs, recording.error)


def _array(tensor: Tensor) -> Array:
    dtype = np.dtype(tensor.dtype)
    if dtype.kind not in "fiub":
        raise TypeError(tensor.dtype)
    return np.frombuffer(tensor.data, dtype.newbyteorder("<")).reshape(tensor.shape)
