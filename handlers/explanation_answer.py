"""From an explanation to the answer of one request.

`{"explanations": [{"target", ["label",] "score", "attributions": {input: value}[,
"convergence_delta"]}, ...], "method", "output"[, "gradients"]}`, with an entry for each row, as
KServe v1 answers `:explain`. Where the answer is an array or a picture, the header X-Explained
holds what is beside the attributions.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from formats.signature import Signature
from handlers import media
from handlers.arrays import to_npy
from handlers.errors import RequestError
from handlers.explain import FLOW, Explanation
from handlers.explainer import Explained
from handlers.heatmap import is_picture, to_png
from handlers.jsontext import dumps
from handlers.values import Array

__all__ = ["answer_type", "as_array", "as_picture", "document", "summary_header"]

HEADER: Final = "X-Explained"
_LONGEST_HEADER: Final = 4000


def answer_type(
    headers: Mapping[str, str], signature: Signature, explanation: Explanation, *, looks: bool
) -> str:
    """Choose the media type of an answer.

    Args:
        headers: of the request, with lower-case names.
        signature: of the model.
        explanation: what is asked.
        looks: whether activations are asked for as well.

    Raises:
        RequestError: the client accepts none that this request can have (status 406).
    """
    floats = sum(spec.is_float for spec in signature.inputs)
    offers: tuple[str, ...] = (media.JSON,)
    if explanation.method != FLOW and floats == 1 and not looks:
        offers += (media.NPY, media.PNG) if is_picture(signature) else (media.NPY,)
    return media.negotiate(headers.get("accept"), offers, "this explanation")


def document(explained: Explained, signature: Signature) -> dict[str, Any]:
    """Return the answer as JSON values."""
    spec = signature.outputs[explained.explanation.output]
    entries = []
    for row, target in enumerate(explained.targets):
        entry: dict[str, Any] = {"target": _shown(target)}
        if spec.labels and len(target) == 1:
            entry["label"] = spec.labels[target[0]]
        entry["score"] = float(explained.scores[row])
        if explained.attributions:
            entry["attributions"] = {
                name: array[row] if signature.row_axis else array
                for name, array in explained.attributions.items()
            }
        if explained.delta is not None:
            entry["convergence_delta"] = float(explained.delta[row])
        entries.append(entry)
    body: dict[str, Any] = {
        "explanations": entries,
        "method": explained.explanation.method,
        "output": spec.name,
    }
    if explained.gradients is not None:
        body["gradients"] = explained.gradients.to_json()
    return body


def as_array(explained: Explained, *, single: bool) -> bytes:
    """Return the attributions of the one floating-point input as a .npy file."""
    return to_npy(_only(explained, single=single))


def as_picture(explained: Explained, signature: Signature) -> bytes:
    """Return the attributions of one row as a PNG.

    Raises:
        RequestError: there are several rows, or they are no pictures.
    """
    if len(explained.targets) > 1:
        raise RequestError(
            "not_acceptable",
            f"{len(explained.targets)} rows are no single picture",
            status=406,
            expected="one row, or Accept: application/json",
        )
    return to_png(_only(explained, single=signature.row_axis))


def summary_header(explained: Explained, signature: Signature) -> dict[str, str]:
    """Return the header that says, as JSON, what an array or a picture leaves out."""
    body = document(explained, signature)
    body.pop("gradients", None)
    for entry in body["explanations"]:
        del entry["attributions"]
    text = dumps(body).decode()
    return {HEADER: ascii(text)[1:-1]} if len(text) <= _LONGEST_HEADER else {}


def _only(explained: Explained, *, single: bool) -> Array:
    (attribution,) = explained.attributions.values()
    return np.ascontiguousarray(attribution[0] if single else attribution)


def _shown(target: tuple[int, ...]) -> int | list[int] | None:
    if len(target) == 1:
        return target[0]
    return list(target) or None
