"""The OpenAPI 3.1 document of a deployment, made from the signatures of its models."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from formats.signature import Signature
from server import __version__, schemas
from server.catalog import Catalog, Served
from server.schemas import Schema

__all__ = ["document"]

# Status, name of the response, when it is given.
_ERRORS: Final = {
    400: ("BadRequest", "The body, an input or a header is not as the model takes it."),
    404: ("NotFound", "There is no such model, version or endpoint."),
    405: ("MethodNotAllowed", "The header Allow names the methods that are answered."),
    406: ("NotAcceptable", "The answer cannot be had as Accept wants it."),
    413: ("TooLarge", "The body, or the answer, is larger than the configuration allows."),
    415: ("UnsupportedMediaType", "The body's type or coding is not understood."),
    431: ("HeadersTooLarge", "More than 100 headers, 8000 bytes of them, or a path of 4000."),
    500: ("Internal", "A fault of the server or of the model."),
    501: ("NotAvailable", "A package that this needs is not installed in the server."),
    502: ("NoAnswer", "TorchServe is not running, or broke off."),
    503: ("Unavailable", "The queue is full or the worker ended; Retry-After says when to try."),
    504: ("Timeout", "The model did not answer in time."),
    507: ("OutOfMemory", "There is not enough memory for the request."),
}
_PARTS: Final[dict[str, Callable[[Signature], Schema]]] = {
    "request": schemas.predict_request,
    "answer": schemas.predict_answer,
    "infer.request": schemas.infer_request,
    "infer.answer": schemas.infer_answer,
    "explain.answer": schemas.explain_answer,
}
_RAW: Final = "application/octet-stream"
_NPY: Final = "application/x-npy"
_PICTURES: Final = ("image/png", "image/jpeg")
_HEADERS: Final = {
    "X-Activations": "stats, raw, layers=...: look inside the request; see docs/activations.md.",
    "X-Correlation-Id": "Comes back as it was sent.",
    "traceparent": "Comes back as it was sent.",
}
_EXPLAIN: Final = {
    "X-Explain": "METHOD; output=...; target=...: what to explain; see docs/explanations.md.",
}


def document(
    catalog: Catalog, max_body: int, defaults: Sequence[Served] | None = None
) -> dict[str, Any]:
    """Describe every endpoint, with the types of the models that are served.

    Args:
        catalog: The models.
        max_body: Bytes that a request's body may have.
        defaults: Each model in the version that answers where a request names none; None for
            those that are loaded first.
    """
    served = catalog.defaults() if defaults is None else defaults
    paths: Schema = _server_paths() | _model_paths(catalog)
    for one in served:
        paths |= _posts(one)
    for one in catalog.several():
        paths |= _version_posts(one)
    schemas_of_versions = _schemas({_versioned(one): one for one in catalog.several()})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Vitrine",
            "version": __version__,
            "description": f"PyTorch models, served. A body may have {max_body} bytes.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": schemas.ERROR, "OipError": schemas.OIP_ERROR}
            | _schemas({one.name: one for one in served})
            | schemas_of_versions,
            "responses": {
                f"{form}{name}": _error(status, f"{form}Error")
                for form in ("", "Oip")
                for status, (name, _) in _ERRORS.items()
            },
            "parameters": _parameters(catalog),
        },
    }


def _server_paths() -> Schema:
    flag = {"type": "boolean"}
    about = {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "extensions": {"type": "array", "items": {"type": "string"}},
    }
    status = {"enum": ["ready", "degraded", "unready", "stopping"]}
    problem = _object({"what": {"type": "string"}, "why": {"type": "string"}})
    workers = _object({"ready": {"type": "integer"}, "expected": {"type": "integer"}})
    model = {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "state": {"enum": ["loading", "ready", "recovering", "failed"]},
        "workers": workers,
        "inference": {"type": "string"},
    }
    health = {
        "status": status,
        "live": flag,
        "ready": flag,
        "models": {"type": "array", "items": _object(model)},
        "problems": {"type": "array", "items": problem},
    }
    names = {"models": {"type": "array", "items": {"type": "string"}}}
    return {
        "/ping": _get("Whether it is ready.", {"status": {"type": "string"}}, (503,)),
        "/health": _get("What is ready, and what is wrong with what.", health, (503,)),
        "/v2": _get("The server.", about),
        "/v2/health/live": _get("Whether TorchServe answers.", {"live": flag}, (503,)),
        "/v2/health/ready": _get("Whether it is ready.", {"ready": flag}, (503,)),
        "/v1/models": _get("The models.", names),
        "/openapi.json": _get("This document.", {"openapi": {"type": "string"}}),
    }


def _model_paths(catalog: Catalog) -> Schema:
    model, version = _ref("parameters", "model"), _ref("parameters", "version")
    tensor = {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
    }
    tensors = {"type": "array", "items": _object(tensor)}
    metadata = {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": tensors,
        "outputs": tensors,
    }
    ready = {"name": {"type": "string"}, "ready": {"type": "boolean"}}
    paths: Schema = {}
    for base, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, version]),
    ):
        what = "What a model takes and answers."
        paths[base] = _get(what, metadata, (404,), parameters, oip=True)
        what = "Whether it is ready."
        paths[f"{base}/ready"] = _get(what, ready, (404, 503), parameters, oip=True)
    paths["/v1/models/{model}"] = _get("Whether it is ready.", ready, (404, 503), [model])
    for path, oip in (
        ("/predictions/{model}/{version}", False),
        ("/v2/models/{model}/versions/{version}/infer", True),
    ):
        anything: Schema = {}
        paths[path] = _post(
            "One version of a model.", anything, anything, parameters=[model, version], oip=oip
        )
    return paths


def _posts(served: Served) -> Schema:
    name = served.name
    what = f"Ask {name}."
    if served.signature is None:
        return {f"/predictions/{name}": _post(what, {}, {}, example=served.sample)}
    what = served.signature.description or what
    ask, answer, infer, inferred, explained = _parts(name)
    either = ({"anyOf": [ask, infer]}, {"anyOf": [answer, inferred]})
    lone = len(served.signature.inputs) == 1
    kinds = (_RAW, _NPY) if lone else (_RAW,)
    pictures = _PICTURES if lone and served.signature.inputs[0].image is not None else ()
    whole = _post(what, *either, example=served.sample, binary=kinds, pictures=pictures)
    explain = _post(f"Explain an answer of {name}.", ask, explained, example=served.sample)
    explain["post"]["parameters"].append(_ref("parameters", "X-Explain"))
    explain["post"]["responses"]["200"]["content"] |= {_NPY: {}, "image/png": {}}
    explain["post"]["requestBody"]["content"] |= {kind: {} for kind in (*kinds, *pictures)}
    return {
        f"/predictions/{name}": whole,
        f"/explanations/{name}": explain,
        f"/v1/models/{name}:explain": explain,
        f"/v1/models/{name}:predict": _post(what, ask, answer, example=served.sample),
        # Bytes without the protocol's header are an array, answered as one.
        f"/v2/models/{name}/infer": _post(
            what, infer, {"anyOf": [inferred, answer]}, binary=(_RAW,), oip=True
        ),
    }


def _version_posts(served: Served) -> Schema:
    """One version of a model that has several, at the URLs that name it."""
    if served.signature is None:
        return {}
    what = f"Version {served.version} of {served.name}."
    ask, answer, infer, inferred, _ = _parts(_versioned(served))
    either = ({"anyOf": [ask, infer]}, {"anyOf": [answer, inferred]})
    versions = f"/v2/models/{served.name}/versions/{served.version}"
    return {
        f"/predictions/{served.name}/{served.version}": _post(what, *either, example=served.sample),
        f"{versions}/infer": _post(
            what, infer, {"anyOf": [inferred, answer]}, binary=(_RAW,), oip=True
        ),
    }


def _versioned(served: Served) -> str:
    return f"{served.name}-{served.version}"


def _parts(name: str) -> list[Schema]:
    return [_ref("schemas", f"{_component(name)}.{part}") for part in _PARTS]


def _schemas(served: Mapping[str, Served]) -> Schema:
    made: Schema = {}
    for name, one in served.items():
        if one.signature is not None:
            own = _component(name)
            made |= {f"{own}.{part}": make(one.signature) for part, make in _PARTS.items()}
    return made


def _parameters(catalog: Catalog) -> Schema:
    versions = sorted({v for name in catalog.names for v in catalog.versions(name)})
    found: Schema = {
        name: {"name": name, "in": "path", "required": True, "schema": {"enum": values}}
        for name, values in (("model", catalog.names), ("version", versions))
    }
    for name, what in (_HEADERS | _EXPLAIN).items():
        schema = {"type": "string"}
        found[name] = {"name": name, "in": "header", "description": what, "schema": schema}
    return found


def _get(
    what: str,
    properties: Schema,
    errors: tuple[int, ...] = (),
    parameters: Sequence[Schema] = (),
    *,
    oip: bool = False,
) -> Schema:
    answer = {"description": "The answer.", "content": _json(_object(properties))}
    responses: Schema = {"200": answer}
    for status in errors:
        if status == 503:
            responses["503"] = {**answer, "description": "The answer is no."}
        else:
            responses[str(status)] = _refusal(status, oip)
    return {"get": {"summary": what, "parameters": list(parameters), "responses": responses}}


def _post(
    what: str,
    body: Schema,
    answer: Schema,
    *,
    example: Any = None,
    parameters: Sequence[Schema] = (),
    binary: Sequence[str] = (),
    pictures: Sequence[str] = (),
    oip: bool = False,
) -> Schema:
    # Bytes have no JSON Schema; docs/requests.md says what they hold.
    more: Schema = {kind: {} for kind in binary}
    content: Schema = _json(body) | more | {kind: {} for kind in pictures}
    if example is not None:
        content["application/json"]["example"] = example
    answers = _json(answer) | more
    errors = {str(status): _refusal(status, oip) for status in _ERRORS}
    return {
        "post": {
            "summary": what,
            "parameters": [*parameters, *(_ref("parameters", name) for name in _HEADERS)],
            "requestBody": {"required": True, "content": content},
            "responses": {"200": {"description": "The answer.", "content": answers}} | errors,
        }
    }


def _refusal(status: int, oip: bool) -> Schema:
    return _ref("responses", ("Oip" if oip else "") + _ERRORS[status][0])


def _error(status: int, schema: str) -> Schema:
    answer: Schema = {
        "description": _ERRORS[status][1],
        "content": _json(_ref("schemas", schema)),
    }
    header = {405: "Allow", 503: "Retry-After"}.get(status)
    if header is not None:
        answer["headers"] = {header: {"schema": {"type": "string"}}}
    return answer


def _object(properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _component(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
