"""From a model's outputs to the bytes and headers of one answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from formats.activation import Activations
from formats.signature import Signature
from handlers import coding, explanation_answer, jsontext, media, oip, oip_answer
from handlers.arrays import to_npy
from handlers.asked import Asked
from handlers.datatypes import to_raw
from handlers.encode import answer, value
from handlers.errors import RequestError
from handlers.explainer import Explained
from handlers.message import Request, Response, Run
from handlers.observe import layer_of, only
from handlers.values import Array

__all__ = ["Reply", "encode", "encode_explanation", "respond"]

# Given back as they came, so that a client can match the answer to its own trace.
_ECHOED: Final = ("traceparent", "x-correlation-id")
_LONGEST_ECHO: Final = 1024
# The front knows the path, and says which form of an error belongs to it.
_ERRORS: Final = "x-vitrine-errors"
_LENGTH: Final = oip.LENGTH.lower()


@dataclass(frozen=True)
class Reply:
    """The body of a good answer, its media type, and headers of its own."""

    body: bytes
    media: str
    headers: Mapping[str, str] = field(default_factory=dict)


def encode(
    asked: Asked,
    outputs: Sequence[Array],
    signature: Signature,
    seen: Activations | None,
    raw: Mapping[str, Array],
) -> Reply:
    """Write an answer in the form that the request asks for.

    Args:
        asked: the request.
        outputs: one array per output of the signature, holding this request's rows only.
        signature: of the model.
        seen: statistics of this request's rows, where they were taken.
        raw: activations of this request by activation key; at least those it asks for.
    """
    if asked.media != media.JSON:
        array = value(outputs[0], asked.question)
        if asked.media == media.NPY:
            return Reply(to_npy(array), media.NPY)
        return Reply(to_raw(array, signature.outputs[0].dtype).tobytes(), media.RAW)
    parts: list[Array] = []
    if asked.envelope is None:
        body = answer(outputs, asked.question, signature)
    else:
        body, parts = oip_answer.answer(asked.envelope, outputs, signature, seen, raw)
    body |= _activations(asked, seen, raw)
    text = jsontext.dumps(body)
    if not parts:
        return Reply(text, media.JSON)
    return Reply(
        b"".join([text, *(part.data for part in parts)]), media.RAW, {oip.LENGTH: str(len(text))}
    )


def encode_explanation(
    asked: Asked,
    explained: Explained,
    signature: Signature,
    seen: Activations | None,
    raw: Mapping[str, Array],
) -> Reply:
    """Write an explanation in the form that the request asks for; arguments as for `encode`.

    Raises:
        RequestError: several rows were to be one picture.
    """
    if asked.media == media.JSON:
        body = explanation_answer.document(explained, signature) | _activations(asked, seen, raw)
        return Reply(jsontext.dumps(body), media.JSON)
    if asked.media == media.NPY:
        written = explanation_answer.as_array(explained, single=asked.question.single)
    else:
        written = explanation_answer.as_picture(explained, signature)
    return Reply(written, asked.media, explanation_answer.summary_header(explained, signature))


def _activations(
    asked: Asked, seen: Activations | None, raw: Mapping[str, Array]
) -> dict[str, Any]:
    wanted = asked.wanted
    if wanted is not None and wanted.raw:
        own = {key: array for key, array in raw.items() if layer_of(key) in wanted.raw}
        return {"activations": {"raw": own}}
    if wanted is not None and seen is not None:
        return {"activations": only(seen, wanted.stats).to_json()}
    return {}


def respond(
    request: Request, result: Reply | RequestError, rows: int = 0, run: Run | None = None
) -> Response:
    """Return what is sent: errors are always JSON, and long JSON is compressed on request.

    Args:
        request: the request.
        result: what became of it.
        rows: how many rows it had, if that is known.
        run: the run of the model that it was part of, if there was one.
    """
    headers = {"content-type": media.JSON}
    for name in _ECHOED:
        echo = request.headers.get(name)
        if echo is not None and _may_be_echoed(echo):
            headers[name] = echo
    if isinstance(result, RequestError):
        if result.status == 503:
            headers["retry-after"] = "1"
        document = result.to_json(flat=_is_flat(request.headers, result))
        body = jsontext.dumps(document)
        return Response(result.status, body, headers, result.code, rows, run)
    headers |= {"content-type": result.media, **result.headers}
    body = result.body
    if result.media == media.JSON and len(body) >= coding.LEAST_BYTES:
        headers["vary"] = "Accept-Encoding"
        if coding.takes_gzip(request.headers.get("accept-encoding")):
            body = coding.compressed(body)
            headers["content-encoding"] = "gzip"
    return Response(200, body, headers, "", rows, run)


def _is_flat(headers: Mapping[str, str], error: RequestError) -> bool:
    told = headers.get(_ERRORS)
    if told is not None:
        return told == "string"
    # No front: what is visibly the protocol's is answered in it.
    return error.oip or _LENGTH in headers


def _may_be_echoed(text: str) -> bool:
    return len(text) <= _LONGEST_ECHO and text.isascii() and text.isprintable()
