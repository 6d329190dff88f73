"""The same numbers as JSON, with all their digits."""

from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from formats.baseline import STATISTICS
from observe import queries
from observe.deviation import summary_of
from observe.metrics import exposition
from observe.views.asked import Asked
from observe.views.model import columns_for, deviations_of
from observe.views.request import view_request
from observe.views.source import Source

__all__ = ["routes"]


def routes(source: Source) -> list[Route]:
    """Return what answers JSON, `/health` and `/metrics`."""

    def state(request: Request) -> Any:
        found = source.state()
        return {
            "records": found.records,
            "skipped": found.skipped,
            "truncated": found.truncated,
            "read_bytes": found.read_bytes,
            "found_bytes": found.found_bytes,
            "complete": found.complete,
            "problem": found.problem,
            "generation": found.generation,
            "token": source.token(),
            "models": source.models(),
        }

    def heatmap(request: Request) -> Any:
        asked = _asked(source, request)
        index = source.index
        columns = columns_for(len(index.order(asked.model, asked.version)))
        return queries.heatmap(index, asked.window(source.models()), asked.statistic, columns)

    def overview(request: Request) -> Any:
        asked = _asked(source, request)
        baseline = source.baselines.find(asked.model, asked.version)
        return [
            {
                "key": layer.key,
                "records": layer.records,
                "dead": layer.dead,
                "non_finite": layer.non_finite,
                "statistics": layer.statistics,
                "deviations": deviations_of(layer, baseline),
                "baseline": {
                    name: {"mean": summary.mean, "spread": summary.spread}
                    for name in STATISTICS
                    if (summary := summary_of(baseline, layer.key, name)) is not None
                },
            }
            for layer in queries.overview(source.index, asked.window(source.models()))
        ]

    def one(request: Request) -> Any:
        view = view_request(source, request.path_params["model"], request.path_params["request_id"])
        return {
            **{name: getattr(view.request.row, name) for name in vars(view.request.row)},
            "first_off_baseline": view.left,
            "first_non_finite": view.bad,
            "outlier": view.outlier,
            "layers": view.layers,
            "gradients": view.request.gradients,
        }

    def health(request: Request) -> Response:
        found = source.state()
        return PlainTextResponse(
            f"{found.problem}\n" if found.problem else "ok\n", 503 if found.problem else 200
        )

    def metrics(request: Request) -> Response:
        text = source.cached(
            "metrics", lambda: exposition(source.index, source.state(), source.baselines)
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    return [
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/api/state", _json(state)),
        Route("/api/m/{model:name}/heatmap", _json(heatmap)),
        Route("/api/m/{model:name}/overview", _json(overview)),
        Route("/api/m/{model:name}/r/{request_id:name}", _json(one)),
    ]


def _json(answer: Callable[[Request], Any]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        return Response(orjson.dumps(answer(request)), media_type="application/json")

    return endpoint


def _asked(source: Source, request: Request) -> Asked:
    return Asked.of(source.models(), request.path_params["model"], request.query_params)
