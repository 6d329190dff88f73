"""The Open Inference Protocol's answer: named tensors first, JSON and raw bytes of them last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from formats.activation import Activations
from formats.datatypes import DATATYPES
from formats.signature import Signature
from formats.statistics import LayerRecord, LayerStatistics
from handlers.datatypes import to_raw
from handlers.observe import layer_of
from handlers.oip import PREFIX, Envelope, Requested
from handlers.values import Array

__all__ = ["COLUMNS", "Tensor", "answer"]

COLUMNS: Final = ("elements", "mean", "std", "min", "max", "zero_fraction", "non_finite")
"""The columns of a tensor of statistics."""


@dataclass(frozen=True)
class Tensor:
    """One output of an answer.

    Attributes:
        name: as clients know it.
        dtype: its element type, by torch's name.
        array: its values; float32 for bfloat16.
        binary: whether its values stand behind the JSON.
        parameters: strings, numbers or booleans.
    """

    name: str
    dtype: str
    array: Array
    binary: bool
    parameters: Mapping[str, str | float | bool] = field(default_factory=dict)

    def to_json(self, raw: Array | None) -> dict[str, Any]:
        """Return the tensor with its values in one flat list, row by row.

        Args:
            raw: its bytes, where they stand behind the JSON; their number is then told instead.
        """
        parameters = dict(self.parameters)
        if raw is not None:
            parameters["binary_data_size"] = raw.nbytes
        return {
            "name": self.name,
            "shape": list(self.array.shape),
            "datatype": DATATYPES[self.dtype],
            **({"parameters": parameters} if parameters else {}),
            **({"data": self.array.ravel()} if raw is None else {}),
        }


def answer(
    envelope: Envelope,
    outputs: Sequence[Array],
    signature: Signature,
    seen: Activations | None,
    raw: Mapping[str, Array],
) -> tuple[dict[str, Any], list[Array]]:
    """Return the answer to one request.

    Args:
        envelope: of the request.
        outputs: one array per output of the signature, holding this request's rows only.
        signature: of the model.
        seen: statistics of this request's rows, where they were taken.
        raw: activations of this request by activation key; at least those it asks for.

    Returns:
        `{"model_name", "model_version"[, "id"][, "parameters"], "outputs"}`, whose parameters are
        the flags of the activations, where any were asked for; and what stands behind it in the
        body, in this order.
    """
    body: dict[str, Any] = {
        "model_name": signature.model,
        "model_version": signature.model_version,
    }
    if envelope.id is not None:
        body["id"] = envelope.id
    if envelope.wanted is not None and seen is not None:
        body["parameters"] = _flags(seen)
    tensors = _tensors(envelope, outputs, signature, seen, raw)
    parts = [to_raw(one.array, one.dtype) if one.binary else None for one in tensors]
    body["outputs"] = [one.to_json(part) for one, part in zip(tensors, parts, strict=True)]
    return body, [part for part in parts if part is not None]


def _tensors(
    envelope: Envelope,
    outputs: Sequence[Array],
    signature: Signature,
    seen: Activations | None,
    raw: Mapping[str, Array],
) -> list[Tensor]:
    own = {
        spec.name: (spec.dtype, array)
        for spec, array in zip(signature.outputs, outputs, strict=True)
    }
    tensors: list[Tensor] = []
    for one in envelope.outputs:
        if not one.layers:
            tensors.append(Tensor(one.name, *own[one.name], one.binary))
        elif one.raw:
            tensors += _activations(one, raw)
        elif seen is not None:
            tensors += _statistics(one, seen)
    return tensors


def _activations(one: Requested, raw: Mapping[str, Array]) -> list[Tensor]:
    return [
        Tensor(f"{PREFIX}{key}", array.dtype.name, array, one.binary)
        for key, array in raw.items()
        if layer_of(key) in one.layers
    ]


def _statistics(one: Requested, seen: Activations) -> list[Tensor]:
    parameters = {"columns": ",".join(COLUMNS)}
    return [
        Tensor(f"{PREFIX}{key}", "float64", _table(record), one.binary, parameters)
        for key, record in seen.layers.items()
        if layer_of(key) in one.layers
    ]


def _table(record: LayerRecord[LayerStatistics]) -> Array:
    """Return float64 [rows, 7], or [1, 7] for a layer without rows; NaN for what is None."""
    rows = record.rows or (record.total,)
    cells = [[getattr(row, column) for column in COLUMNS] for row in rows]
    return np.array(cells, dtype=np.float64)


def _flags(seen: Activations) -> dict[str, str]:
    # The protocol has no lists and no null among parameters.
    flags = {"dead": ",".join(seen.dead)}
    return flags if seen.non_finite is None else {"non_finite": seen.non_finite, **flags}
