"""The request path, free of any server: decode, group, run, slice, encode."""

import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from formats.activation import Activations
from handlers import jsontext, oip
from handlers.batch import groups, join, split
from handlers.decode import Array, Question, parse, question
from handlers.encode import answer
from handlers.errors import RequestError
from handlers.model import Model
from handlers.observe import (
    HEADER,
    Observation,
    Wanted,
    layer_of,
    limited,
    only,
    parse_header,
)
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
        wanted: what its header asks to see inside.
        envelope: how it is to be answered, if it came in the Open Inference Protocol.
        draw: its random number, for sampling.
    """

    question: Question
    wanted: Wanted | None
    envelope: oip.Envelope | None
    draw: float

    @property
    def looks_inside(self) -> bool:
        """Whether it asks for activations, in its header or among its outputs."""
        among_outputs = self.envelope is not None and self.envelope.wanted is not None
        return self.wanted is not None or among_outputs


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
                asked.append(self._asked(request, draws[place]))
                places.append(place)
            except Exception as error:
                outcomes[place] = _Outcome(_told(error))
        batching = self._model.certificate.batching
        questions = [one.question for one in asked]
        for members in groups(questions, batching.independent, batching.max_rows):
            group = [asked[member] for member in members]
            for member, outcome in zip(members, self._answers(group), strict=True):
                outcomes[places[member]] = outcome
        inside = {place for place, one in zip(places, asked, strict=True) if one.looks_inside}
        for place, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
            self._record(request, outcome, draws[place], asks=place in inside)
        pairs = zip(requests, outcomes, strict=True)
        return [_respond(request, outcome.result) for request, outcome in pairs]

    def _asked(self, request: Request, draw: float) -> _Asked:
        signature, layers = self._model.signature, self._model.layers
        body = parse(request.body, signature)
        envelope: oip.Envelope | None = None
        if oip.applies(body):
            own, envelope = oip.decode(body, signature, layers)
        else:
            own = question(body, signature)
        return _Asked(own, parse_header(request.headers, layers), envelope, draw)

    def _record(self, request: Request, outcome: _Outcome, draw: float, *, asks: bool) -> None:
        error = outcome.result if isinstance(outcome.result, RequestError) else None
        self._recorder.record(
            request.id,
            request.headers,
            draw,
            # A header that could not be read asks as well.
            asked=asks or HEADER in request.headers,
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
            one.looks_inside or self._recorder.samples(one.draw) for one in group
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
        own = one.question
        try:
            raw = self._raw(one)
        except RequestError as error:
            return _Outcome(error, own.rows)
        seen = None
        if observation is not None and (one.looks_inside or self._recorder.samples(one.draw)):
            seen = self._seen(observation, own, rows)
        elif self._recorder.logs_anomalies and self._chosen and not _finite(outputs):
            _, alone = self._model.observe(own.arrays, own.rows)
            seen = self._seen(alone, own, range(own.rows))
        return _Outcome(self._body(outputs, one, seen, raw), own.rows, seen)

    def _raw(self, one: _Asked) -> Mapping[str, Array]:
        """Return the activations it asks for, in its header and among its outputs, by key.

        Raises:
            RequestError: they are too many to be sent, or complex.
        """
        names = one.wanted.raw if one.wanted is not None else frozenset()
        if one.envelope is not None and one.envelope.wanted is not None:
            names |= one.envelope.wanted.raw
        return limited(self._model.raw(one.question.arrays, names)) if names else {}

    def _body(
        self,
        outputs: list[Array],
        one: _Asked,
        seen: Activations | None,
        raw: Mapping[str, Array],
    ) -> dict[str, Any]:
        signature, wanted = self._model.signature, one.wanted
        if one.envelope is None:
            body = answer(outputs, one.question, signature)
        else:
            body = oip.answer(one.envelope, outputs, signature, seen, raw)
        if wanted is not None and wanted.raw:
            own = {key: array for key, array in raw.items() if layer_of(key) in wanted.raw}
            body["activations"] = {"raw": own}
        elif wanted is not None and seen is not None:
            body["activations"] = only(seen, wanted.stats).to_json()
        return body

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
