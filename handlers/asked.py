"""From a request in any form to what it asks: of the model, of its layers, and of the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from formats.layers import Layer
from formats.signature import Signature
from handlers import media, oip
from handlers.arrays import from_npy, from_octets
from handlers.coding import decoded
from handlers.datatypes import Buffer
from handlers.decode import Question, parse, question
from handlers.errors import RequestError
from handlers.explain import Explanation, asks, parse_explanation
from handlers.explanation_answer import answer_type
from handlers.images import from_image, is_image
from handlers.message import Request
from handlers.observe import Wanted, parse_header

__all__ = ["Asked", "read"]

_LENGTH: Final = oip.LENGTH.lower()
_OF_ONE_ARRAY: Final = (media.JSON, media.NPY, media.RAW)
_READERS: Final = {media.NPY: from_npy, media.RAW: from_octets, media.IMAGE: from_image}


@dataclass(frozen=True)
class Asked:
    """A decoded request.

    Attributes:
        question: what it asks of the model.
        wanted: what its header asks to see inside.
        envelope: how it is to be answered, if it came in the Open Inference Protocol.
        media: the media type of its answer, if it did not.
        sampled: whether it is measured although it does not ask.
        explanation: what is to be explained, if it asks for that rather than for a prediction.
    """

    question: Question
    wanted: Wanted | None
    envelope: oip.Envelope | None
    media: str = media.JSON
    sampled: bool = False
    explanation: Explanation | None = None

    @property
    def looks_inside(self) -> bool:
        """Whether it asks for activations, in its header or among its outputs, or for gradients."""
        among_outputs = self.envelope is not None and self.envelope.wanted is not None
        return self.wanted is not None or among_outputs or self.explanation is not None


def read(request: Request, signature: Signature, layers: Sequence[Layer], limit: int) -> Asked:
    """Read a request.

    Args:
        request: with a body in JSON, the Open Inference Protocol, a .npy file, raw bytes or
            a picture.
        signature: of the model.
        layers: those that hooks are compiled into.
        limit: the most bytes that a body may have once its content coding is undone.

    Raises:
        RequestError: naming what was wrong and what was expected.
    """
    headers = request.headers
    body = decoded(request.body, headers.get("content-encoding"), limit)
    # `curl -T` sends no media type, and a picture tells by itself what it is.
    kind = media.IMAGE if is_image(body) else media.body_type(headers)
    wanted = parse_header(headers, layers)
    explanation = parse_explanation(headers, signature, layers) if asks(headers) else None
    envelope: oip.Envelope | None = None
    if _LENGTH in headers and kind in (media.JSON, media.RAW):
        own, envelope = _with_tail(body, headers[_LENGTH], signature, layers)
    elif kind == media.JSON or not body:
        document = parse(body, signature)
        if oip.applies(document):
            own, envelope = oip.decode(document, signature, layers)
        else:
            own = question(document, signature)
    else:
        own = _READERS[kind](body, signature)
    if explanation is not None:
        _check_outputs(envelope, signature)
        looks = wanted is not None
        kind = answer_type(headers, signature, explanation, looks=looks)
        return Asked(own, wanted, None, kind, explanation=explanation)
    if envelope is not None:
        return Asked(own, wanted, envelope)
    return Asked(own, wanted, None, _answer_type(headers, signature, wanted))


def _check_outputs(envelope: oip.Envelope | None, signature: Signature) -> None:
    """Refuse requested outputs: an explanation is answered in a form of its own."""
    names = [spec.name for spec in signature.outputs]
    if envelope is not None and [one.name for one in envelope.outputs] != names:
        raise RequestError(
            "bad_explanation",
            "an explanation has no requested outputs",
            expected="X-Explain: METHOD; output=NAME",
        )


def _with_tail(
    body: Buffer, length: str, signature: Signature, layers: Sequence[Layer]
) -> tuple[Question, oip.Envelope]:
    start, tail = oip.cut(body, length)
    document = parse(start, signature)
    if not oip.applies(document):
        raise RequestError(
            "wrong_type",
            f"the request has the header {oip.LENGTH}, and its JSON is not the protocol's",
            expected='{"inputs": [{"name": ..., "shape": ..., "datatype": ...}]}',
        )
    return oip.decode(document, signature, layers, tail)


def _answer_type(headers: Mapping[str, str], signature: Signature, wanted: Wanted | None) -> str:
    """Choose the media type of an answer that is not the protocol's.

    Raises:
        RequestError: the client accepts none that this request can have (status 406).
    """
    one_array = len(signature.outputs) == 1 and wanted is None
    offers = _OF_ONE_ARRAY if one_array else (media.JSON,)
    why = ""
    if wanted is not None:
        why = ": it holds activations"
    elif not one_array:
        why = f": it holds the outputs {', '.join(spec.name for spec in signature.outputs)}"
    return media.negotiate(headers.get("accept"), offers, "the answer", why)
