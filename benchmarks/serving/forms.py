"""How a row is put into a request, and where in the answer its numbers are."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.serving.work import TOLERANCE, Floats, Work

__all__ = [
    "Encoder",
    "Form",
    "base64_json",
    "base64_of",
    "open_inference",
    "open_inference_base64",
    "plain_json",
    "raw",
]

_JSON: Final = {"Content-Type": "application/json"}
_BYTES: Final = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Form:
    """The requests of one server.

    Attributes:
        path: of the URL.
        headers: of every request.
        bodies: one a row.
        marker: the numbers of a JSON answer are the first after this text; None where they are
            the last bytes of the answer, float32 in little-endian order.
        own_headers: of each request besides; empty where none has any.
        tolerance: how far an answer may be from the expected one, relative to it above 1.
    """

    path: str
    headers: dict[str, str]
    bodies: list[bytes]
    marker: str | None
    own_headers: list[dict[str, str]] = field(default_factory=list)
    tolerance: float = TOLERANCE


Encoder = Callable[[Work, Floats], Form]
"""Makes the requests for rows, float32 [count, *shape]."""


def plain_json(path: str, marker: str, *, rows: bool = False) -> Encoder:
    """Send `{"inputs": row}`, or `{"inputs": [row]}`.

    Args:
        path: of the URL; {model} stands for the model's name.
        marker: as in `Form`; {output} stands for the output's name.
        rows: whether the row stands in a list.
    """

    def encode(work: Work, inputs: Floats) -> Form:
        bodies = [_dump({"inputs": [_list(row)] if rows else _list(row)}) for row in inputs]
        return Form(_filled(path, work), dict(_JSON), bodies, _filled(marker, work))

    return encode


def base64_json(path: str, marker: str, *, rows: bool = False) -> Encoder:
    """Send `{"inputs": text}`, or `{"inputs": [text]}`, with a row's bytes as base64."""

    def encode(work: Work, inputs: Floats) -> Form:
        texts = [base64_of(row) for row in inputs]
        bodies = [_dump({"inputs": [text] if rows else text}) for text in texts]
        return Form(_filled(path, work), dict(_JSON), bodies, _filled(marker, work))

    return encode


def raw(path: str, *, accept: bool = False) -> Encoder:
    """Send a row's bytes; the answer is bytes too, where need be because `Accept` says so."""

    def encode(work: Work, inputs: Floats) -> Form:
        headers = dict(_BYTES) | ({"Accept": "application/octet-stream"} if accept else {})
        return Form(_filled(path, work), headers, [row.tobytes() for row in inputs], None)

    return encode


def open_inference(work: Work, inputs: Floats) -> Form:
    """Speak the Open Inference Protocol, with binary tensors both ways where the work is binary."""
    entry: dict[str, Any] = {"name": work.input, "shape": [1, *work.shape], "datatype": "FP32"}
    if not work.binary:
        bodies = [_dump({"inputs": [{**entry, "data": _list(row.ravel())}]}) for row in inputs]
        return Form(_infer(work), dict(_JSON), bodies, '"data":')
    size = {"parameters": {"binary_data_size": inputs[0].nbytes}}
    asked = [{"name": work.output, "parameters": {"binary_data": True}}]
    start = _dump({"inputs": [{**entry, **size}], "outputs": asked})
    headers = {**_BYTES, "Inference-Header-Content-Length": str(len(start))}
    return Form(_infer(work), headers, [start + row.tobytes() for row in inputs], None)


def open_inference_base64(work: Work, inputs: Floats) -> Form:
    """Speak the Open Inference Protocol to a server that knows no binary tensors over HTTP."""
    if not work.binary:
        return open_inference(work, inputs)
    entry = {"name": work.input, "shape": [1], "datatype": "BYTES"}
    bodies = [_dump({"inputs": [{**entry, "data": [base64_of(row)]}]}) for row in inputs]
    return Form(_infer(work), dict(_JSON), bodies, '"data":')


def base64_of(row: Floats) -> str:
    """Return a row's bytes, float32 in little-endian order, as base64."""
    return base64.b64encode(row.tobytes()).decode()


def _infer(work: Work) -> str:
    return f"/v2/models/{work.model}/infer"


def _filled(text: str, work: Work) -> str:
    return text.replace("{model}", work.model).replace("{output}", work.output)


def _list(row: Floats) -> Any:
    """As people write numbers: the works' rows have four decimals."""
    return row.astype("float64").round(4).tolist()


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
