"""The request path, free of any server: read, group, run, slice, encode."""

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from formats.activation import Activations
from formats.gradient import Gradients
from formats.internal import PROBE
from handlers import coding
from handlers.asked import Asked, read
from handlers.batch import groups, join, split
from handlers.decode import Question
from handlers.errors import RequestError
from handlers.explain import asks
from handlers.explainer import explain
from handlers.faults import check_device
from handlers.message import Request, Response, Run
from handlers.model import Model
from handlers.observe import HEADER, Observation, limited
from handlers.recorded import RequestRecording
from handlers.recorder import Recorder
from handlers.reply import Reply, encode, encode_explanation, respond
from handlers.sample import Sample
from handlers.units import UnitWatch
from handlers.values import Array

__all__ = ["Request", "Response", "Service"]


@dataclass(frozen=True)
class _Outcome:
    """What became of a request.

    `outputs` holds its own rows of a prediction's. `seen` is what its layers looked like, where
    that was measured, `gradients` what arrived at them, and `run` the run that it was part of.
    """

    result: Reply | RequestError
    rows: int = 0
    seen: Activations | None = None
    gradients: Gradients | None = None
    outputs: Sequence[Array] = ()
    run: Run | None = None


class Service:
    """Answers batches of requests with one model.

    Args:
        model: the model.
        recorder: decides which requests are measured and logged.
        max_request_bytes: what a body may have once its content coding is undone.
        recording: keeps requests to be replayed; none by default.

    Attributes:
        units: how often each unit of a ReLU-like layer was active.
    """

    def __init__(
        self,
        model: Model,
        recorder: Recorder | None = None,
        max_request_bytes: int = coding.MAX_REQUEST_BYTES,
        recording: RequestRecording | None = None,
    ) -> None:
        self._model = model
        self._recorder = recorder or Recorder(model.signature)
        self._limit = max_request_bytes
        self._recording = recording or RequestRecording(model.signature)
        self.units = UnitWatch(model.layers)
        self._chosen = frozenset(layer.name for layer in model.layers if layer.chosen)

    def take_samples(self) -> list[Sample]:
        """Return what there is for the metrics since the last call."""
        return [*self._recorder.take_samples(), *self._recording.take_samples()]

    def handle(self, requests: Sequence[Request]) -> list[Response]:
        """Answer every request by itself, whatever its neighbours hold.

        Raises:
            DeviceLost: none can be answered, now or later, by this process; nothing else is raised.
        """
        outcomes: dict[int, _Outcome] = {}
        draws = [self._recorder.draw() for _ in requests]
        places: list[int] = []
        asked: list[Asked] = []
        for place, request in enumerate(requests):
            try:
                asked.append(self._asked(request, draws[place]))
                places.append(place)
            except Exception as error:
                outcomes[place] = _Outcome(_told(error))
        batching = self._model.certificate.batching
        # An explanation takes many runs, and shares none of them.
        apart = [member for member, one in enumerate(asked) if one.explanation is not None]
        for member in apart:
            outcomes[places[member]] = self._explains(asked[member])
        together = [member for member, one in enumerate(asked) if one.explanation is None]
        questions = [asked[member].question for member in together]
        for chosen in groups(questions, batching.independent, batching.max_rows):
            members = [together[one] for one in chosen]
            group = [asked[member] for member in members]
            for member, outcome in zip(members, self._answers(group), strict=True):
                outcomes[places[member]] = outcome
        inside = {place for place, one in zip(places, asked, strict=True) if one.looks_inside}
        for place, request in enumerate(requests):
            if PROBE in request.headers:
                continue
            self._record(request, outcomes[place], draws[place], asks=place in inside)
            if self._recording.picks() and not asks(request.headers):
                self._keep(request, outcomes[place])
        ended = [outcomes[place] for place in range(len(requests))]
        return [
            respond(request, outcome.result, outcome.rows, outcome.run)
            for request, outcome in zip(requests, ended, strict=True)
        ]

    def _asked(self, request: Request, draw: float) -> Asked:
        asked = read(request, self._model.signature, self._model.layers, self._limit)
        return replace(asked, sampled=True) if self._recorder.samples(draw) else asked

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
            gradients=outcome.gradients,
            error=error.code if error is not None else None,
        )

    def _keep(self, request: Request, outcome: _Outcome) -> None:
        error = outcome.result if isinstance(outcome.result, RequestError) else None
        self._recording.record(
            request.id,
            request.headers,
            request.body,
            outcome.outputs if error is None else (),
            error.code if error is not None else None,
        )

    def _answers(self, group: Sequence[Asked]) -> list[_Outcome]:
        try:
            return self._answers_together(group)
        except Exception as error:
            if len(group) == 1:
                return [_Outcome(_told(error, group[0]), group[0].question.rows)]
        # One of them is to blame; each alone shows which, and the others get their answer.
        return [outcome for one in group for outcome in self._answers([one])]

    def _answers_together(self, group: Sequence[Asked]) -> list[_Outcome]:
        questions = [one.question for one in group]
        arrays = join(questions)
        observation: Observation | None = None
        began, started = time.time(), time.perf_counter()
        if self._chosen and any(one.looks_inside or one.sampled for one in group):
            rows = sum(question.rows for question in questions)
            outputs, observation = self._model.observe(arrays, rows)
            run = Run(len(group), began, time.perf_counter() - started)
            if self.units.look(lambda names: self._model.raw(arrays, names)):
                self._recorder.note_units(self.units)
        else:
            outputs = self._model.run(arrays)
            run = Run(len(group), began, time.perf_counter() - started)
        outcomes = []
        start = 0
        slices = split(outputs, questions, self._model.signature.row_axis)
        for own, one in zip(slices, group, strict=True):
            stop = start + one.question.rows
            outcomes.append(self._outcome(own, one, observation, range(start, stop), run))
            start = stop
        return outcomes

    def _outcome(
        self,
        outputs: list[Array],
        one: Asked,
        observation: Observation | None,
        rows: range,
        run: Run,
    ) -> _Outcome:
        own = one.question
        try:
            raw = self._raw(one)
        except RequestError as error:
            return _Outcome(_told(error, one), own.rows, run=run)
        seen = None
        if observation is not None and (one.looks_inside or one.sampled):
            if len(rows) < observation.rows and not observation.divides:
                _, observation = self._model.observe(own.arrays, own.rows)
                rows = range(own.rows)
            seen = self._seen(observation, own, rows)
        elif self._recorder.logs_anomalies and self._chosen and not _finite(outputs):
            _, alone = self._model.observe(own.arrays, own.rows)
            seen = self._seen(alone, own, range(own.rows))
        reply = encode(one, outputs, self._model.signature, seen, raw)
        return _Outcome(reply, own.rows, seen, outputs=outputs, run=run)

    def _explains(self, one: Asked) -> _Outcome:
        assert one.explanation is not None
        own = one.question
        began, started = time.time(), time.perf_counter()
        try:
            raw = self._raw(one)
            seen = None
            if self._chosen:
                _, observation = self._model.observe(own.arrays, own.rows)
                seen = self._seen(observation, own, range(own.rows))
            explained = explain(self._model, own, one.explanation)
            run = Run(1, began, time.perf_counter() - started)
            reply = encode_explanation(one, explained, self._model.signature, seen, raw)
        except Exception as error:
            return _Outcome(_told(error), own.rows)
        return _Outcome(reply, own.rows, seen, explained.gradients, run=run)

    def _raw(self, one: Asked) -> Mapping[str, Array]:
        """Return the activations it asks for, in its header and among its outputs, by key.

        Raises:
            RequestError: they are too many to be sent, or complex.
        """
        names = one.wanted.raw if one.wanted is not None else frozenset()
        if one.envelope is not None and one.envelope.wanted is not None:
            names |= one.envelope.wanted.raw
        return limited(self._model.raw(one.question.arrays, names)) if names else {}

    def _seen(self, observation: Observation, question: Question, rows: range) -> Activations:
        inspection = None
        if observation.suspects(rows.start, rows.stop):
            inspection = self._model.inspect(question.arrays, question.rows)
        return observation.activations(rows.start, rows.stop, inspection)


def _finite(outputs: Sequence[Array]) -> bool:
    return all(output.dtype.kind != "f" or bool(np.isfinite(output).all()) for output in outputs)


def _told(error: Exception, one: Asked | None = None) -> RequestError:
    told = _as_told(error)
    if one is not None and one.envelope is not None:
        told.oip = True
    return told


def _as_told(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    check_device(error)
    if isinstance(error, MemoryError):
        return RequestError("out_of_memory", "not enough memory for this request", status=507)
    # Escaped and with a prefix: an exception may quote what a client sent, and TorchServe takes
    # lines of a worker that begin with [METRICS] or [PID] for its own.
    for line in "".join(traceback.format_exception(error)).splitlines():
        print(f"vitrine: {ascii(line)[1:-1]}", file=sys.stderr)
    return RequestError("internal", f"unexpected {type(error).__name__} in the server", status=500)
