"""The request path, free of any server: decode, group, run, slice, encode."""

import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from formats.activation import Activations
from handlers import jsontext
from handlers.batch import groups, join, split
from handlers.decode import Array, Question, decode
from handlers.encode import answer
from handlers.errors import RequestError
from handlers.model import Model
from handlers.observe import Observation, Wanted, limited, only, parse_header
from handlers.recorder import Recorder
from handlers.units import UnitWatch

__all__ = ["Request", "Response", "Service"]

# Given back as they came, so that a client can match the answer to its own trace.
_ECHOED: Final = ("traceparent", "x-correlation-id")


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        body: the bytes that were sent.
        headers: with lower-case names.
        id: the server's own id of the request.
    """

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True)
class Response:
    """One answer.

    Attributes:
        status: HTTP status.
        body: JSON.
        headers: to be set on the answer, the content type among them.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]


Result = dict[str, Any] | RequestError


@dataclass(frozen=True)
class _Asked:
    """A decoded request.

    Attributes:
        question: what it asks of the model.
        wanted: what it asks to see inside.
        draw: its random number, for sampling.
    """

    question: Question
    wanted: Wanted | None
    draw: float


@dataclass(frozen=True)
class _Outcome:
    """What became of a request; `seen` is what its layers looked like, where that was measured."""

    result: Result
    rows: int = 0
    seen: Activations | None = None


class Service:
    """Answers batches of requests with one model.

    Args:
        model: the model.
        recorder: decides which requests are measured and logged.

    Attributes:
        units: how often each unit of a ReLU-like layer was active.
    """

    def __init__(self, model: Model, recorder: Recorder | None = None) -> None:
        self._model = model
        self._recorder = recorder or Recorder(model.signature)
        self.units = UnitWatch(model.layers)
        self._chosen = frozenset(layer.name for layer in model.layers if layer.chosen)

    def handle(self, requests: Sequence[Request]) -> list[Response]:
        """Answer every request by itself, whatever its neighbours hold. Never raises."""
        outcomes: list[_Outcome] = [_Outcome({})] * len(requests)
        draws = [self._recorder.draw() for _ in requests]
        places: list[int] = []
        asked: list[_Asked] = []
        for place, request in enumerate(requests):
            try:
                question = decode(request.body, self._model.signature)
                wanted = parse_header(request.headers, self._model.layers)
                asked.append(_Asked(question, wanted, draws[place]))
                places.append(place)
            except Exception as error:
                outcomes[place] = _Outcome(_told(error))
        batching = self._model.certificate.batching
        questions = [one.question for one in asked]
        for members in groups(questions, batching.independent, batching.max_rows):
            group = [asked[member] for member in members]
            for member, outcome in zip(members, self._answers(group), strict=True):
                outcomes[places[member]] = outcome
        for request, outcome, draw in zip(requests, outcomes, draws, strict=True):
            self._record(request, outcome, draw)
        pairs = zip(requests, outcomes, strict=True)
        return [_respond(request, outcome.result) for request, outcome in pairs]

    def _record(self, request: Request, outcome: _Outcome, draw: float) -> None:
        error = outcome.result if isinstance(outcome.result, RequestError) else None
        self._recorder.record(
            request.id,
            request.headers,
            draw,
            rows=outcome.rows,
            seen=outcome.seen,
            error=error.code if error is not None else None,
        )

    def _answers(self, group: Sequence[_Asked]) -> list[_Outcome]:
        try:
            return self._answers_together(group)
        except Exception as error:
            if len(group) == 1:
                return [_Outcome(_told(error), group[0].question.rows)]
        # One of them is to blame; each alone shows which, and the others get their answer.
        return [outcome for one in group for outcome in self._answers([one])]

    def _answers_together(self, group: Sequence[_Asked]) -> list[_Outcome]:
        questions = [one.question for one in group]
        arrays = join(questions)
        observation: Observation | None = None
        if self._chosen and any(
            one.wanted is not None or self._recorder.samples(one.draw) for one in group
        ):
            rows = sum(question.rows for question in questions)
            outputs, observation = self._model.observe(arrays, rows)
            self.units.look(lambda names: self._model.raw(arrays, names))
        else:
            outputs = self._model.run(arrays)
        outcomes = []
        start = 0
        slices = split(outputs, questions, self._model.signature.row_axis)
        for own, one in zip(slices, group, strict=True):
            stop = start + one.question.rows
            outcomes.append(self._outcome(own, one, observation, range(start, stop)))
            start = stop
        return outcomes

    def _outcome(
        self, outputs: list[Array], one: _Asked, observation: Observation | None, rows: range
    ) -> _Outcome:
        question = one.question
        body = answer(outputs, question, self._model.signature)
        if one.wanted is not None and one.wanted.raw:
            try:
                raw = limited(self._model.raw(question.arrays, one.wanted.layers))
                body["activations"] = {"raw": raw}
            except RequestError as error:
                return _Outcome(error, question.rows)
        seen = None
        if observation is not None and (one.wanted or self._recorder.samples(one.draw)):
            seen = self._seen(observation, question, rows)
        elif self._recorder.logs_anomalies and self._chosen and not _finite(outputs):
            _, alone = self._model.observe(question.arrays, question.rows)
            seen = self._seen(alone, question, range(question.rows))
        if one.wanted is not None and not one.wanted.raw and seen is not None:
            body["activations"] = only(seen, one.wanted.layers).to_json()
        return _Outcome(body, question.rows, seen)

    def _seen(self, observation: Observation, question: Question, rows: range) -> Activations:
        inspection = None
        if observation.suspects(rows.start, rows.stop):
            inspection = self._model.inspect(question.arrays, question.rows)
        return observation.activations(rows.start, rows.stop, inspection)


def _finite(outputs: Sequence[Array]) -> bool:
    return all(output.dtype.kind != "f" or bool(np.isfinite(output).all()) for output in outputs)


def _told(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    return RequestError("internal", f"unexpected {type(error).__name__} in the server", status=500)


def _respond(request: Request, result: Result) -> Response:
    headers = {"content-type": "application/json"}
    for name in _ECHOED:
        value = request.headers.get(name)
        if value is not None and value.isascii() and value.isprintable():
            headers[name] = value
    if isinstance(result, RequestError):
        return Response(result.status, jsontext.dumps(result.to_json()), headers)
    return Response(200, jsontext.dumps(result), headers)
