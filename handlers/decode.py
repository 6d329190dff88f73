"""From a request's JSON body to arrays that fit the signature, or to a clear refusal.

Three forms are taken, as TensorFlow Serving and KServe v1 write them:

- `{"inputs": value}` or `{"inputs": {name: value, ...}}`: whole tensors by name;
- `{"instances": [row, ...]}`: a list of rows, each a value or `{name: value, ...}`;
- a bare value (nested lists) for a model with one input, or `{name: value, ...}`.

A value may leave out the row axis: it is then one row, and so is its answer.

`handlers.oip` reads a fourth form, the Open Inference Protocol's, with the same checks of values.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from formats.signature import Signature
from handlers import jsontext
from handlers.datatypes import Buffer
from handlers.errors import RequestError
from handlers.values import Array, check, count_rows, describe, to_array

__all__ = [
    "Body",
    "Question",
    "decode",
    "named",
    "parse",
    "question",
    "too_deep",
]

Form = Literal["outputs", "predictions"]


@dataclass(frozen=True)
class Question:
    """A decoded request.

    Attributes:
        arrays: one per input, in the signature's order, with the row axis where it has one.
        rows: how many rows it holds; 1 for a model without a row axis.
        single: whether the row axis was left out, so that the answer leaves it out too.
        form: the form of the answer: by output ("outputs") or by row ("predictions").
    """

    arrays: tuple[Array, ...]
    rows: int
    single: bool
    form: Form


@dataclass(frozen=True)
class Body:
    """A body that was JSON.

    Attributes:
        document: its value.
        suspicious: whether it has a word that NumPy would read as a number.
    """

    document: Any
    suspicious: bool


def decode(body: bytes, signature: Signature) -> Question:
    """Read a JSON body against a signature: `parse`, then `question`.

    Raises:
        RequestError: naming the input and what was expected.
    """
    return question(parse(body, signature), signature)


def parse(body: Buffer, signature: Signature) -> Body:
    """Read JSON, whatever form it has.

    Raises:
        RequestError: there is no body, or it is not JSON.
    """
    if not body or body.isspace():
        raise RequestError("empty_body", "the request has no body", expected=_usage(signature))
    try:
        document = jsontext.loads(body)
    except jsontext.RepeatedKeyError as error:
        raise RequestError(
            "duplicate_key",
            f"an object of the body has the key {ascii(error.key)[:80]} twice",
            expected="each key once",
        ) from None
    except ValueError as error:
        raise RequestError(
            "not_json", f"the body is not JSON: {ascii(str(error))[1:-1]}", expected="JSON"
        ) from None
    except RecursionError:
        raise too_deep(signature) from None
    # NumPy reads [true, 1.5] as numbers. Only a body that has the words can hide one.
    return Body(document, b"true" in body or b"false" in body)


def question(body: Body, signature: Signature) -> Question:
    """Read one of the three forms against a signature.

    Raises:
        RequestError: naming the input and what was expected.
    """
    try:
        return _question(body.document, signature, body.suspicious)
    except RecursionError:
        raise too_deep(signature) from None


def too_deep(signature: Signature) -> RequestError:
    """Return the error for a body that Python cannot walk through."""
    return RequestError("wrong_shape", "the body is nested too deeply", expected=_usage(signature))


def _question(document: Any, signature: Signature, suspicious: bool) -> Question:
    form, columns = _columns(document, signature)
    arrays = []
    singles = []
    for spec in signature.inputs:
        array = to_array(columns[spec.name], spec, suspicious)
        single = form == "outputs" and signature.row_axis and array.ndim == len(spec.shape) - 1
        check(array, spec, spec.shape[1:] if single else spec.shape)
        arrays.append(array[np.newaxis] if single else array)
        singles.append(single)
    rows = count_rows(arrays, singles, signature)
    return Question(tuple(arrays), rows, singles[0], form)


def _usage(signature: Signature) -> str:
    inputs = ", ".join(f'"{spec.name}": {spec}' for spec in signature.inputs)
    return f'{{"inputs": {{{inputs}}}}}'


def _columns(document: Any, signature: Signature) -> tuple[Form, dict[str, Any]]:
    names = [spec.name for spec in signature.inputs]
    if not isinstance(document, dict):
        if len(names) > 1:
            raise RequestError(
                "missing_input",
                f"the model has {len(names)} inputs, so each must be named",
                input=names[1],
                expected=_usage(signature),
            )
        return "outputs", {names[0]: document}
    # Before the protocol's own keys, so that an input may be called "inputs" or "instances".
    if set(document) == set(names) and not isinstance(document[names[0]], dict):
        return "outputs", document
    if "inputs" in document:
        inputs = document["inputs"]
        if not isinstance(inputs, dict):
            return "outputs", _columns(inputs, signature)[1]
        return "outputs", named(inputs, signature)
    if "instances" in document:
        return "predictions", _instances(document["instances"], signature)
    return "outputs", named(document, signature)


def _instances(instances: Any, signature: Signature) -> dict[str, list[Any]]:
    names = [spec.name for spec in signature.inputs]
    if not signature.row_axis:
        raise RequestError(
            "no_rows", '"instances" lists rows, and this model has none', expected=_usage(signature)
        )
    if not isinstance(instances, list):
        raise RequestError(
            "wrong_type", '"instances" is not a list of rows', expected="a list of at least one row"
        )
    if not instances:
        raise RequestError(
            "empty_input", '"instances" is empty', expected="a list of at least one row"
        )
    if len(names) == 1 and not isinstance(instances[0], dict):
        return {names[0]: instances}
    rows = []
    for number, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise RequestError(
                "wrong_type",
                f'row {number} of "instances" is {describe(instance)}',
                expected=f"an object with {', '.join(names)}",
            )
        rows.append(named(instance, signature, f" in row {number}"))
    return {name: [row[name] for row in rows] for name in names}


def named(
    columns: dict[str, Any], signature: Signature, where: str = "", usage: str | None = None
) -> dict[str, Any]:
    """Return the same, if it has each of the model's inputs and nothing else.

    Args:
        columns: by name.
        signature: names the inputs.
        where: said behind the message, e.g. " in row 3".
        usage: what to expect; by default the form with names.

    Raises:
        RequestError: an input is missing, or there is no such input.
    """
    expected = usage or _usage(signature)
    for spec in signature.inputs:
        if spec.name not in columns:
            raise RequestError(
                "missing_input",
                f"input {spec.name!r} is missing{where}",
                input=spec.name,
                expected=expected,
            )
    unknown = [name for name in columns if name not in {spec.name for spec in signature.inputs}]
    if unknown:
        raise RequestError(
            "unknown_input",
            f"the model has no input {ascii(unknown[0])[:80]}{where}",
            expected=expected,
        )
    return columns
