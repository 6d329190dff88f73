"""The request path, free of any server: decode, group, run, slice, encode."""

import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from handlers import jsontext
from handlers.batch import groups, join, split
from handlers.decode import Question, decode
from handlers.encode import answer
from handlers.errors import RequestError
from handlers.model import Model
from handlers.observe import Observation, Wanted, limited, parse_header

__all__ = ["Request", "Response", "Service"]

# Given back as they came, so that a client can match the answer to its own trace.
_ECHOED: Final = ("traceparent", "x-correlation-id")


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        body: the bytes that were sent.
        headers: with lower-case names.
    """

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


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


class Service:
    """Answers batches of requests with one model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def handle(self, requests: Sequence[Request]) -> list[Response]:
        """Answer every request by itself, whatever its neighbours hold. Never raises."""
        results: list[dict[str, Any] | RequestError | None] = [None] * len(requests)
        places: list[int] = []
        asked: list[_Asked] = []
        for place, request in enumerate(requests):
            try:
                question = decode(request.body, self._model.signature)
                wanted = parse_header(request.headers, self._model.layers)
                asked.append(_Asked(question, wanted))
                places.append(place)
            except Exception as error:
                results[place] = _told(error)
        batching = self._model.certificate.batching
        questions = [one.question for one in asked]
        for members in groups(questions, batching.independent, batching.max_rows):
            group = [asked[member] for member in members]
            for member, result in zip(members, self._answers(group), strict=True):
                results[places[member]] = result
        pairs = zip(requests, results, strict=True)
        return [_respond(request, result) for request, result in pairs]

    def _answers(self, group: Sequence["_Asked"]) -> list[dict[str, Any] | RequestError]:
        try:
            return self._answers_together(group)
        except Exception as error:
            if len(group) == 1:
                return [_told(error)]
        # One of them is to blame; each alone shows which, and the others get their answer.
        return [result for one in group for result in self._answers([one])]

    def _answers_together(self, group: Sequence["_Asked"]) -> list[dict[str, Any] | RequestError]:
        questions = [one.question for one in group]
        arrays = join(questions)
        observation: Observation | None = None
        if any(one.wanted is not None for one in group):
            rows = sum(question.rows for question in questions)
            outputs, observation = self._model.observe(arrays, rows)
        else:
            outputs = self._model.run(arrays)
        answers: list[dict[str, Any] | RequestError] = []
        start = 0
        for own, one in zip(
            split(outputs, questions, self._model.signature.row_axis), group, strict=True
        ):
            body = answer(own, one.question, self._model.signature)
            stop = start + one.question.rows
            if one.wanted is not None and observation is not None:
                try:
                    body["activations"] = self._look(observation, one, start, stop)
                except RequestError as error:
                    answers.append(error)
                    start = stop
                    continue
            answers.append(body)
            start = stop
        return answers

    def _look(
        self, observation: Observation, one: "_Asked", start: int, stop: int
    ) -> dict[str, Any]:
        assert one.wanted is not None
        question = one.question
        if one.wanted.raw:
            return {"raw": limited(self._model.raw(question.arrays, one.wanted.layers))}
        inspection = None
        if observation.suspects(start, stop):
            inspection = self._model.inspect(question.arrays, question.rows)
        return observation.activations(start, stop, one.wanted, inspection).to_json()


@dataclass(frozen=True)
class _Asked:
    question: Question
    wanted: Wanted | None


def _told(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    return RequestError("internal", f"unexpected {type(error).__name__} in the server", status=500)


def _respond(request: Request, result: dict[str, Any] | RequestError | None) -> Response:
    headers = {"content-type": "application/json"}
    for name in _ECHOED:
        value = request.headers.get(name)
        if value is not None and value.isascii() and value.isprintable():
            headers[name] = value
    if isinstance(result, RequestError):
        return Response(result.status, jsontext.dumps(result.to_json()), headers)
    return Response(200, jsontext.dumps(result), headers)
