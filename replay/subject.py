"""An archive that requests are replayed on: what it answers, and what its layers do meanwhile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from formats.observation import merge
from formats.recording import Recording
from handlers.asked import read
from handlers.batch import groups, join, split
from handlers.coding import MAX_REQUEST_BYTES
from handlers.decode import Question
from handlers.engines import use_engine
from handlers.errors import RequestError
from handlers.message import Request
from handlers.model import Model
from handlers.observe import Observation
from handlers.units import UnitWatch
from handlers.values import Array
from replay.layers import LayerTotals

__all__ = ["Answer", "Subject"]

_VECTORS: Final = 5


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        outputs: by name; empty for a request that ended in an error.
        error: the error's code, or None.
        fits: whether the request could be read: it fits the model's signature.
    """

    outputs: Mapping[str, Array] = field(default_factory=dict)
    error: str | None = None
    fits: bool = True


class Subject:
    """An unpacked archive, loaded.

    Args:
        folder: the archive's files.
        device: where to run.

    Attributes:
        model: the model.
        layers: statistics of its observed layers, over all requests that it answered.
        units: which units of its ReLU-like layers were never active.

    Raises:
        FormatError, RuntimeError: as `handlers.model.Model` does.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model = Model(folder, device, use_engine(None))
        self.layers = LayerTotals()
        # A clock that stands still: in a server the watch spares time, here it looks at every row.
        self.units = UnitWatch(self.model.layers, clock=lambda: 0.0)
        self._observes = any(layer.chosen for layer in self.model.layers)

    @property
    def name(self) -> str:
        """The model and its version, for people."""
        signature = self.model.signature
        return f"{signature.model} {signature.model_version}"

    def answer(self, recordings: Sequence[Recording]) -> list[Answer]:
        """Answer requests, together where their rows may share a run. Never raises."""
        answers: dict[int, Answer] = {}
        questions: list[Question] = []
        places: list[int] = []
        signature = self.model.signature
        for place, recording in enumerate(recordings):
            request = Request(recording.body, recording.headers, recording.request_id)
            try:
                asked = read(request, signature, self.model.layers, MAX_REQUEST_BYTES)
            except Exception as error:
                answers[place] = Answer(error=_code(error), fits=False)
                continue
            questions.append(asked.question)
            places.append(place)
        batching = self.model.certificate.batching
        for members in groups(questions, batching.independent, batching.max_rows):
            found = self._together([questions[member] for member in members])
            for member, answer in zip(members, found, strict=True):
                answers[places[member]] = answer
        return [answers[place] for place in range(len(recordings))]

    def _together(self, group: Sequence[Question]) -> list[Answer]:
        signature = self.model.signature
        try:
            outputs = split(self._run(group), group, signature.row_axis)
        except Exception as error:
            if len(group) == 1:
                return [Answer(error=_code(error))]
            # One of them is to blame; each alone shows which.
            return [answer for one in group for answer in self._together([one])]
        names = [spec.name for spec in signature.outputs]
        return [Answer(dict(zip(names, own, strict=True))) for own in outputs]

    def _run(self, group: Sequence[Question]) -> list[Array]:
        arrays = join(group)
        if not self._observes:
            return self.model.run(arrays)
        rows = sum(question.rows for question in group)
        outputs, observation = self.model.observe(arrays, rows)
        self._count(arrays, observation)
        self.units.look(lambda names: self.model.raw(arrays, names))
        return outputs

    def _count(self, arrays: Sequence[Array], observation: Observation) -> None:
        rows = observation.rows
        inspection = None
        if observation.suspects(0, rows):
            inspection = self.model.inspect(arrays, rows)
        for one in observation.records:
            five = observation.vectors[one.first : one.first + _VECTORS]
            counts = inspection.counts(one, 0, rows) if inspection is not None else None
            self.layers.add(one.key, merge(five, one.count, range(one.units), counts))


def _code(error: Exception) -> str:
    if isinstance(error, RequestError):
        return error.code
    return "out_of_memory" if isinstance(error, MemoryError) else "internal"
