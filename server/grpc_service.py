"""The Open Inference Protocol over gRPC: the catalog answers, or the front's HTTP side does."""

import http.client
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn
from urllib.parse import quote

import grpc

from formats.internal import RECORD, record_of_error
from server import __version__
from server.catalog import Catalog, Served
from server.endpoints import EXTENSIONS
from server.grpc_infer import JSON_LENGTH, BadAnswer, BadTensor, answer, request
from server.grpc_messages import MESSAGES, SERVICE
from server.lookup import Lookup
from server.unix_http import Answer, Client
from server.watch import Watch

__all__ = ["InferenceService"]

_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    406: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# For what is refused here: the status that HTTP would have.
_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 502,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# What of a call's metadata the handler reads.
_PASSED: Final = ("x-correlation-id", "traceparent")
# What the front says of the caller's key: the models that it may use, if not all.
_MODELS: Final = "x-vitrine-models"


class InferenceService:
    """Answers calls.

    Args:
        catalog: What is served.
        watch: Knows what is ready.
        lookup: Finds it.
        client: Posts to the front.
        patience: Seconds that an answer may take.
    """

    def __init__(
        self, catalog: Catalog, watch: Watch, lookup: Lookup, client: Client, patience: float
    ) -> None:
        self._catalog, self._watch, self._lookup = catalog, watch, lookup
        self._client, self._patience = client, patience

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server is given."""
        methods = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: _unary(name, method) for name, method in methods.items()}
        )

    def _server_live(self, message: Any, context: grpc.ServicerContext) -> Any:
        return {"live": self._watch.condition().live}

    def _server_ready(self, message: Any, context: grpc.ServicerContext) -> Any:
        return {"ready": self._watch.condition().ready}

    def _server_metadata(self, message: Any, context: grpc.ServicerContext) -> Any:
        return {"name": "vitrine", "version": __version__, "extensions": EXTENSIONS}

    def _model_ready(self, message: Any, context: grpc.ServicerContext) -> Any:
        served = self._find(message, context)
        return {"ready": self._watch.problem(served.name, message.version or None) is None}

    def _model_metadata(self, message: Any, context: grpc.ServicerContext) -> Any:
        served = self._find(message, context)
        return served.metadata(self._catalog.versions(served.name))

    def _model_infer(self, message: Any, context: grpc.ServicerContext) -> Any:
        _permit(message.model_name, context)
        try:
            body = request(message)
        except BadTensor as error:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        headers = {name: value for name, value in context.invocation_metadata() if name in _PASSED}
        headers["Content-Type"] = "application/octet-stream"
        headers[JSON_LENGTH] = str(len(body.header))
        left = context.time_remaining()
        patience = self._patience if left is None else max(0.001, min(left, self._patience))
        try:
            got = self._client.post(_url(message), body.header + body.tensors, headers, patience)
        except TimeoutError:
            _refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "no answer came in time")
        except (OSError, http.client.HTTPException) as error:
            _refuse(context, grpc.StatusCode.UNAVAILABLE, f"the server broke off: {error}")
        if got.status != 200:
            said = _said(got)
            _tell(context, got.headers.get(RECORD), got.status, said)
            context.abort(_CODES.get(got.status, grpc.StatusCode.INTERNAL), said)
        length = got.headers.get(JSON_LENGTH.lower())
        try:
            found = answer(got.body, int(length) if length else None)
        except BadAnswer as error:
            _refuse(context, grpc.StatusCode.UNIMPLEMENTED, f"not_the_protocol: {error}")
        _tell(context, got.headers.get(RECORD), got.status, "")
        return found

    def _find(self, message: Any, context: grpc.ServicerContext) -> Served:
        _permit(message.name, context)
        served = self._lookup.find(message.name, message.version or None)
        if served is None:
            what = f"model_not_found: there is no model {message.name!r}"
            if self._catalog.find(message.name) is not None:
                what = f"model_not_found: model {message.name!r} has no version {message.version!r}"
            _refuse(context, grpc.StatusCode.NOT_FOUND, what)
        return served


def _unary(name: str, method: Callable[[Any, grpc.ServicerContext], Any]) -> Any:
    ask, make = MESSAGES[f"{name}Request"], MESSAGES[f"{name}Response"]

    def called(message: Any, context: grpc.ServicerContext) -> Any:
        found = method(message, context)
        return make(**found) if isinstance(found, dict) else found

    return grpc.unary_unary_rpc_method_handler(
        called,
        request_deserializer=ask.FromString,
        response_serializer=make.SerializeToString,
    )


def _permit(model: str, context: grpc.ServicerContext) -> None:
    """End a call whose key is not for the model; the front has seen that it is a key."""
    allowed = dict(context.invocation_metadata()).get(_MODELS)
    if allowed is not None and model not in allowed.split(","):
        what = f"forbidden: this API key may only be used for the models {allowed}"
        _refuse(context, grpc.StatusCode.PERMISSION_DENIED, what)


def _tell(context: grpc.ServicerContext, record: str | None, status: int, said: str) -> None:
    """Tell the front what to log of the call (`formats.internal.RECORD`), and its HTTP status."""
    code, colon, _ = said.partition(": ")
    told = record_of_error(code if colon and code.isidentifier() else None)
    if record is not None:
        # Of a handler that is not ours it may be anything.
        with suppress(ValueError, TypeError):
            told = list(json.loads(record))
    context.send_initial_metadata(((RECORD, json.dumps([*told, status])),))


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, said: str) -> NoReturn:
    _tell(context, None, _STATUSES[code], said)
    context.abort(code, said)
    raise AssertionError  # abort raises


def _url(message: Any) -> str:
    version = f"/versions/{quote(message.model_version, safe='')}" if message.model_version else ""
    return f"/v2/models/{quote(message.model_name, safe='')}{version}/infer"


def _said(got: Answer) -> str:
    try:
        told = json.loads(got.body)
        return f"{told['code']}: {told['error']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {got.status}"
