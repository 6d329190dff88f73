"""Addresses of the page, and what every answer has in common."""

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson
from jinja2 import Environment
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from formats.baseline import STATISTICS as BASELINE_STATISTICS
from formats.document import FormatError
from observe import queries
from observe.plots import environment
from observe.views.api import routes as api_routes
from observe.views.asked import SPANS, Asked, Refused
from observe.views.model import deviations_of, view_model
from observe.views.names import AsSent
from observe.views.request import LEFT, compare, view_request
from observe.views.source import Source

__all__ = ["application"]

_STATIC: Final = Path(__file__).resolve().parent.parent / "static"
_MOST_FINDINGS: Final = 8
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def application(source: Source, hosts: list[str] | None = None) -> Starlette:
    """Return the page over a log.

    Args:
        source: the log.
        hosts: names that a browser may know this by; None for any.
    """
    pages = _Pages(source)
    middleware = [Middleware(_Headers), Middleware(AsSent)]
    if hosts is not None:
        # Else a page from elsewhere could read this one under a name that it makes point here.
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    return Starlette(
        routes=[
            Route("/", pages.models),
            Route("/search", pages.search),
            *api_routes(source),
            Mount("/static", StaticFiles(directory=_STATIC)),
            Route("/m/{model:name}/compare", pages.compare),
            Route("/m/{model:name}/r/{request_id:name}", pages.request),
            Route("/m/{model:name}", pages.model),
        ],
        middleware=middleware,
        exception_handlers=dict.fromkeys((Refused, HTTPException, FormatError), pages.refused),
    )


class _Headers:
    """Adds what every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class _Pages:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._templates: Environment = environment()
        self._templates.globals |= {
            "SPANS": SPANS,
            "LEFT": LEFT,
            "STATISTICS": queries.STATISTICS,
            "BASELINE_STATISTICS": BASELINE_STATISTICS,
            "deviations_of": deviations_of,
            "MOST_FINDINGS": _MOST_FINDINGS,
            "request_address": _request_address,
            "request_link": _request_link,
            "compare_address": _compare_address,
        }

    def models(self, request: Request) -> Response:
        """Show the models of the log; where there is one, go to it."""
        known = self._source.models()
        names = {one.model for one in known}
        # A browser takes the address of a model named ".." for that of this page.
        if len(names) == 1 and "all" not in request.query_params and not names <= {".", ".."}:
            return RedirectResponse(Asked(names.pop()).address(), 302)
        return self._page("models.html", {"known": known})

    def model(self, request: Request) -> Response:
        """Show a model."""
        asked = Asked.of(self._source.models(), request.path_params["model"], request.query_params)

        def make() -> str:
            # Before the records are looked at: what comes in meanwhile is new to a browser.
            token = self._source.token()
            context = {"view": view_model(self._source, asked), "token": token}
            return self._render("model.html", context)

        return HTMLResponse(self._source.cached(("page", asked), make))

    def request(self, request: Request) -> Response:
        """Show a request."""
        model = request.path_params["model"]
        view = view_request(self._source, model, request.path_params["request_id"])
        return self._page("request.html", {"view": view, "model": model})

    def compare(self, request: Request) -> Response:
        """Show two requests side by side."""
        model = request.path_params["model"]
        ids = [request.query_params.get(name, "").strip() for name in ("a", "b")]
        if not all(ids):
            raise Refused(400, "two requests are compared: expected ?a=ID&b=ID")
        first, second, pairs = compare(self._source, model, *ids)
        return self._page(
            "compare.html", {"model": model, "first": first, "second": second, "pairs": pairs}
        )

    def search(self, request: Request) -> Response:
        """Go to the request with an id."""
        wanted = request.query_params.get("q", "").strip()
        found = queries.request(self._source.index, wanted) if wanted else None
        if found is None:
            raise Refused(
                404 if wanted else 400,
                f"the log has no request {wanted!r}; expected a whole request id or correlation id",
            )
        return RedirectResponse(_request_address(found.row), 302)

    def refused(self, request: Request, error: Exception) -> Response:
        """Say what is wrong, as a page or, under /api/, as JSON."""
        if isinstance(error, Refused):
            status, message = error.status, error.message
        elif isinstance(error, FormatError):
            status, message = 500, str(error)
        else:
            assert isinstance(error, HTTPException)
            status, message = error.status_code, error.detail
            if status == 404:
                message = f"there is nothing at {request.url.path}"
        if request.url.path.startswith("/api/"):
            content = orjson.dumps({"error": {"status": status, "message": message}})
            return Response(content, status, media_type="application/json")
        return self._page("refused.html", {"message": message, "status": status}, status)

    def _page(self, name: str, context: dict[str, Any], status: int = 200) -> Response:
        return HTMLResponse(self._render(name, context), status)

    def _render(self, name: str, context: dict[str, Any]) -> str:
        common = {
            "state": self._source.state(),
            "every": self._source.every,
            "token": self._source.token(),
        }
        return self._templates.get_template(name).render(common | context)


def _request_address(row: queries.Row) -> str:
    return _request_link(row.model, row.request_id)


def _request_link(model: str, request_id: str) -> str:
    return f"/m/{quote(model, safe='')}/r/{quote(request_id, safe='')}"


def _compare_address(model: str, first: str, second: str) -> str:
    return f"/m/{quote(model, safe='')}/compare?{urlencode({'a': first, 'b': second})}"
