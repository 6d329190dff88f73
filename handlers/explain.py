"""What a request for an explanation asks: the X-Explain header.

TorchServe marks a request to `/explanations/NAME` with the header `explain`; everything else about
it is as in a prediction. `X-Explain: saliency; output=digit; target=7` says what is wanted, and
turns any request into one for an explanation.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from formats.layers import Layer
from formats.signature import Signature
from handlers.errors import RequestError
from handlers.observe import select

__all__ = [
    "FLOW",
    "HEADER",
    "INPUT_X_GRADIENT",
    "INTEGRATED_GRADIENTS",
    "METHODS",
    "SALIENCY",
    "Explanation",
    "asks",
    "parse_explanation",
]

HEADER: Final = "x-explain"
MARK: Final = "explain"

INTEGRATED_GRADIENTS: Final = "integrated_gradients"
SALIENCY: Final = "saliency"
INPUT_X_GRADIENT: Final = "input_x_gradient"
FLOW: Final = "gradient_flow"
METHODS: Final = (INTEGRATED_GRADIENTS, SALIENCY, INPUT_X_GRADIENT, FLOW)
"""The first is the default. The last gives the gradients at the layers and no attribution."""

_FIELDS: Final = ("method", "output", "target", "steps", "baseline", "layers")
_DEFAULT_STEPS: Final = 50
_MOST_STEPS: Final = 1000
_USAGE: Final = (
    f"[{'|'.join(METHODS)}][; output=NAME][; target=INDEX or [INDEX of each row]]"
    "[; steps=N][; baseline=NUMBER][; layers=GLOB,...]"
)


@dataclass(frozen=True)
class Explanation:
    """What is to be explained, and how.

    Attributes:
        method: one of `METHODS`.
        output: position of the explained output in the signature.
        target: which value of the output, as JSON: an index, a label, or a list of these, one
            for each row; None for the greatest value of each row.
        steps: points on the path of integrated gradients.
        baseline: where that path begins, in every element of every input.
        layers: names of the layers whose gradients are wanted.
    """

    method: str
    output: int
    target: Any = None
    steps: int = _DEFAULT_STEPS
    baseline: float = 0.0
    layers: frozenset[str] = frozenset()


def asks(headers: Mapping[str, str]) -> bool:
    """Tell whether a request is for an explanation: by its path, or by what it wants explained."""
    # On predictions it stands there too, as "False".
    marked = headers.get(MARK, "").lower() == "true"
    return marked or bool(headers.get(HEADER, "").strip())


def parse_explanation(
    headers: Mapping[str, str], signature: Signature, layers: Sequence[Layer]
) -> Explanation:
    """Read the X-Explain header of a request for an explanation.

    Args:
        headers: of the request, with lower-case names.
        signature: of the model.
        layers: those that hooks are compiled into.

    Raises:
        RequestError: the header is not understood, or the model has nothing like it.
    """
    fields = _fields(headers.get(HEADER, ""))
    method = fields.get("method", INTEGRATED_GRADIENTS).lower()
    if method not in METHODS:
        raise _refused(f"there is no method {method!a}", ", ".join(METHODS))
    differentiable = [spec.name for spec in signature.inputs if spec.is_float]
    if method != FLOW and not differentiable:
        raise _refused(
            "the model has no floating-point input, so no input has a gradient",
            f"{FLOW}, which gives the gradients at the layers",
        )
    if method == FLOW and not layers:
        raise _refused("this model has no layers that can be observed", "a scripted model")
    globs = [glob.strip() for glob in fields.get("layers", "").split(",") if glob.strip()]
    chosen = frozenset(layer.name for layer in layers)
    return Explanation(
        method=method,
        output=_output(fields.get("output"), signature),
        target=_target(fields.get("target")),
        steps=_steps(fields.get("steps")),
        baseline=_baseline(fields.get("baseline")),
        layers=select(globs, layers, raw=True) if globs else chosen,
    )


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for place, entry in enumerate(part.strip() for part in text.split(";")):
        key, equals, value = (part.strip() for part in entry.partition("="))
        if not entry:
            continue
        if not equals and place == 0:
            key, value = "method", key
        key = key.lower()
        if key not in _FIELDS or key in fields or not value:
            raise _refused(f"X-Explain: {entry!a} is not understood", _USAGE)
        fields[key] = value
    return fields


def _output(name: str | None, signature: Signature) -> int:
    usable = [spec.name for spec in signature.outputs if spec.is_float]
    if not usable:
        raise _refused("the model has no floating-point output", "one that has a gradient")
    if name is not None and name not in usable:
        raise _refused(f"no floating-point output is named {name!a}", ", ".join(usable))
    return [spec.name for spec in signature.outputs].index(name or usable[0])


def _target(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # A label needs no quotes, where nothing else could be meant.
        if text.replace("_", "").replace("-", "").replace(" ", "").isalnum():
            return text
        raise _refused(f"target={text!a} is no JSON", "target=7, or target=[7, 3]") from None


def _steps(text: str | None) -> int:
    if text is None:
        return _DEFAULT_STEPS
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) <= _MOST_STEPS):
        raise _refused(f"steps={text!a} is not understood", f"steps=1 to steps={_MOST_STEPS}")
    return int(text)


def _baseline(text: str | None) -> float:
    try:
        value = float(text or "0")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _refused(f"baseline={text!a} is not understood", "a finite number")
    return value


def _refused(message: str, expected: str) -> RequestError:
    return RequestError("bad_explanation", message[:300], expected=expected[:1000])
