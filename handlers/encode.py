"""From a model's output arrays to the JSON answer of one request."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from formats.signature import Signature
from handlers.decode import Question
from handlers.values import Array

__all__ = ["answer", "value"]


def answer(outputs: Sequence[Array], question: Question, signature: Signature) -> dict[str, Any]:
    """Return the answer in the form the question asked for.

    Args:
        outputs: one array per output of the signature, holding this request's rows only.
        question: the request that is answered.
        signature: names the outputs and their labels.

    Returns:
        `{"outputs": {name: value}}`, or `{"predictions": [row, ...]}` where a row is the value
        of a lone output or `{name: value}`; with `"labels": {name: label or labels}` beside it
        for outputs that have labels. A single row's answer has no row axis.
    """
    named = {
        spec.name: value(array, question)
        for spec, array in zip(signature.outputs, outputs, strict=True)
    }
    body: dict[str, Any]
    if question.form == "predictions":
        body = {"predictions": _by_row(named, question.rows)}
    else:
        body = {"outputs": named}
    labels = {
        spec.name: _labels(named[spec.name], spec.labels)
        for spec in signature.outputs
        if spec.labels
    }
    if labels:
        body["labels"] = labels
    return body


def value(output: Array, question: Question) -> Array:
    """Return an output without its row axis, if the question had none."""
    return output[0] if question.single else output


def _by_row(named: dict[str, Array], rows: int) -> list[Any]:
    if len(named) == 1:
        return list(next(iter(named.values())))
    return [{name: array[row] for name, array in named.items()} for row in range(rows)]


def _labels(scores: Array, labels: tuple[str, ...]) -> Any:
    # A row that holds a NaN has no greatest score, so it has no label either.
    winners = np.where(np.isnan(scores).any(axis=-1), len(labels), np.argmax(scores, axis=-1))
    names: Any = np.asarray([*labels, None], dtype=object)[winners]
    return names.tolist() if isinstance(names, np.ndarray) else names
