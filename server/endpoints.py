"""What the status service answers: KServe v1 and v2 on models and their readiness, and `/ping`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from formats.error import error_to_json
from formats.internal import RECORD, record_of_error
from server import __version__
from server.catalog import Catalog, Served
from server.lookup import Lookup
from server.watch import Watch

__all__ = ["EXTENSIONS", "application"]

#: What the server can do beyond the core of the Open Inference Protocol.
EXTENSIONS: Final = ("binary_tensor_data",)


def application(
    catalog: Catalog,
    watch: Watch,
    lookup: Lookup,
    document: Callable[[Sequence[Served]], Mapping[str, Any]],
) -> Starlette:
    """The service.

    Args:
        catalog: What is served.
        watch: Knows what is ready.
        lookup: Finds it.
        document: Makes the OpenAPI document of the models in their default versions.
    """
    return Starlette(
        routes=_Endpoints(catalog, watch, lookup, document).routes(),
        exception_handlers={_Unknown: _unknown, HTTPException: _refused, Exception: _failed},
    )


class _Unknown(Exception):
    """There is no such model; carries what to say and what there is."""

    def __init__(self, what: str, known: list[str]) -> None:
        super().__init__(what)
        self.what, self.known = what, known


class _Endpoints:
    def __init__(
        self,
        catalog: Catalog,
        watch: Watch,
        lookup: Lookup,
        document: Callable[[Sequence[Served]], Mapping[str, Any]],
    ) -> None:
        self._catalog, self._watch, self._lookup = catalog, watch, lookup
        self._document = document
        self._described: tuple[list[Served], bytes] = ([], b"")

    def routes(self) -> list[Route]:
        server = {"name": "vitrine", "version": __version__, "extensions": list(EXTENSIONS)}
        model = "/v2/models/{name}"
        version = model + "/versions/{version}"
        return [
            Route("/ping", self._ping),
            Route("/health", self._health),
            Route("/v1/models", _constant({"models": self._catalog.names})),
            Route("/v1/models/{name}", self._ready),
            *(Route(path, _constant(server)) for path in ("/v2", "/v2/")),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._all_ready),
            *(Route(path, self._metadata) for path in (model, version)),
            *(Route(f"{path}/ready", self._ready) for path in (model, version)),
            Route("/openapi.json", self._openapi),
        ]

    def _openapi(self, request: Request) -> Response:
        defaults, body = self._described
        if (current := self._lookup.defaults()) != defaults:
            body = json.dumps(self._document(current)).encode()
            self._described = current, body
        return Response(body, media_type="application/json")

    def _ping(self, request: Request) -> Response:
        condition = self._watch.condition()
        if condition.ready:
            return JSONResponse({"status": "Healthy"})
        problems = {name: condition.problem(name) for name in self._catalog.names}
        problems = {name: problem for name, problem in problems.items() if problem is not None}
        return JSONResponse({"status": "Unhealthy", "models": problems}, 503)

    def _health(self, request: Request) -> Response:
        condition = self._watch.condition()
        return JSONResponse(condition.public(), 200 if condition.ready else 503)

    def _live(self, request: Request) -> Response:
        live = self._watch.condition().live
        return JSONResponse({"live": live}, 200 if live else 503)

    def _all_ready(self, request: Request) -> Response:
        ready = self._watch.condition().ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    def _ready(self, request: Request) -> Response:
        served = self._find(request)
        ready = self._watch.problem(served.name, request.path_params.get("version")) is None
        return JSONResponse({"name": served.name, "ready": ready}, 200 if ready else 503)

    def _metadata(self, request: Request) -> Response:
        served = self._find(request)
        return JSONResponse(served.metadata(self._catalog.versions(served.name)))

    def _find(self, request: Request) -> Served:
        name, version = request.path_params["name"], request.path_params.get("version")
        served = self._lookup.find(name, version)
        if served is not None:
            return served
        if self._catalog.find(name) is None:
            raise _Unknown(f"there is no model {name!r}", self._catalog.names)
        versions = self._catalog.versions(name)
        raise _Unknown(f"model {name!r} has no version {version!r}", versions)


def _constant(document: Mapping[str, Any]) -> Any:
    body = json.dumps(document).encode()

    async def endpoint(request: Request) -> Response:
        return Response(body, media_type="application/json")

    return endpoint


def _error(
    request: Request, status: int, code: str, message: str, expected: str | None = None
) -> Response:
    path = request.scope["path"]
    flat = path == "/v2" or path.startswith("/v2/")
    # In ASCII, unlike a JSONResponse.
    body = json.dumps(error_to_json(code, message, expected=expected, flat=flat))
    told = {RECORD: json.dumps(record_of_error(code))}
    return Response(body, status, told, media_type="application/json")


def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Unknown)
    known = "one of " + ", ".join(error.known)
    return _error(request, 404, "model_not_found", error.what, known)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        what = f"{request.method} is not answered at {path}"
        answer = _error(request, 405, "method_not_allowed", what, "GET or HEAD")
        answer.headers["allow"] = "GET, HEAD"
        return answer
    expected = "one of the endpoints in /openapi.json"
    return _error(request, error.status_code, "not_found", f"nothing is at {path}", expected)


def _failed(request: Request, error: Exception) -> Response:
    return _error(request, 500, "internal", f"unexpected {type(error).__name__} in the server")
