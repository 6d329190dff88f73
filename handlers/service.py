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
        questions: list[Question] = []
        for place, request in enumerate(requests):
            try:
                questions.append(decode(request.body, self._model.signature))
                places.append(place)
            except Exception as error:
                results[place] = _told(error)
        batching = self._model.certificate.batching
        for members in groups(questions, batching.independent, batching.max_rows):
            group = [questions[member] for member in members]
            for member, result in zip(members, self._answers(group), strict=True):
                results[places[member]] = result
        return [
            _respond(request, result) for request, result in zip(requests, results, strict=True)
        ]

    def _answers(self, group: Sequence[Question]) -> list[dict[str, Any] | RequestError]:
        try:
            outputs = split(self._model.run(join(group)), group)
            return [
                answer(own, question, self._model.signature)
                for own, question in zip(outputs, group, strict=True)
            ]
        except Exception as error:
            if len(group) == 1:
                return [_told(error)]
        # One of them is to blame; each alone shows which, and the others get their answer.
        return [result for question in group for result in self._answers([question])]


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
