"""JSON Schemas of what a model takes and answers, made from its signature."""

from dataclasses import replace
from typing import Any, Final

from formats.datatypes import DATATYPES
from formats.signature import Signature, TensorSpec

__all__ = [
    "ERROR",
    "OIP_ERROR",
    "Schema",
    "explain_answer",
    "infer_answer",
    "infer_request",
    "predict_answer",
    "predict_request",
]

Schema = dict[str, Any]

_CODE: Final[Schema] = {"type": "string", "description": "Short and stable, for programs."}
_MESSAGE: Final[Schema] = {"type": "string", "description": "What was wrong, for people."}
_BESIDE: Final[Schema] = {
    "input": {"type": "string", "description": "The input that was wrong."},
    "expected": {"type": "string", "description": "What would have been right."},
}
#: Every error, whoever made it, but those of the Open Inference Protocol.
ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": _CODE, "message": _MESSAGE, **_BESIDE},
        }
    },
}
#: Every error under `/v2`.
OIP_ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {
        "error": {"type": "string", "description": "What was wrong, and what was expected."},
        "code": _CODE,
        **_BESIDE,
    },
}
_ACTIVATIONS: Final[Schema] = {
    "type": "object",
    "description": "By layer, where X-Activations asked for it; see docs/activations.md.",
}
_GRADIENTS: Final[Schema] = {
    "type": "object",
    "description": "What arrives at each layer on the way back; see docs/explanations.md.",
}
_LABEL: Final[Schema] = {"type": ["string", "array", "null"], "items": {"type": ["string", "null"]}}
_SHAPE: Final[Schema] = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def predict_request(signature: Signature) -> Schema:
    """What `/predictions/NAME` and `/v1/models/NAME:predict` take, beside the protocol's form."""
    by_name = _object({spec.name: _value(spec, signature) for spec in signature.inputs})
    rows = _object({spec.name: _row(spec) for spec in signature.inputs})
    forms = [_object({"inputs": by_name}), by_name]
    if len(signature.inputs) == 1:
        [lone] = signature.inputs
        bare = _value(lone, signature)
        forms = [_object({"inputs": bare}), *forms, bare]
        rows = {"anyOf": [_row(lone), rows]}
    if signature.row_axis:
        forms.append(_object({"instances": _list(rows)}))
    return {"anyOf": forms}


def predict_answer(signature: Signature) -> Schema:
    """What they answer."""
    outputs = {spec.name: _value(spec, signature, answer=True) for spec in signature.outputs}
    labels = {spec.name: _LABEL for spec in signature.outputs if spec.labels}
    beside: Schema = {"activations": _ACTIVATIONS}
    if labels:
        beside["labels"] = _object(labels)
    whole = _object({"outputs": _object(outputs)}, beside)
    if not signature.row_axis:
        return whole
    rows = _object({spec.name: _row(spec, answer=True) for spec in signature.outputs})
    if len(signature.outputs) == 1:
        rows = _row(signature.outputs[0], answer=True)
    return {"anyOf": [whole, _object({"predictions": {"type": "array", "items": rows}}, beside)]}


def explain_answer(signature: Signature) -> Schema:
    """What `/explanations/NAME` and `/v1/models/NAME:explain` answer."""
    # What an input may hold bounds no attribution to it.
    inputs = [
        replace(spec, minimum=None, maximum=None) for spec in signature.inputs if spec.is_float
    ]
    attribution = (_row(spec, answer=True) for spec in inputs)
    if not signature.row_axis:
        attribution = (_nested(spec, spec.shape, answer=True) for spec in inputs)
    by_input = dict(zip((spec.name for spec in inputs), attribution, strict=True))
    entry = _object(
        {"target": {"type": ["integer", "array", "null"]}, "score": {"type": ["number", "null"]}},
        {
            "label": {"type": "string"},
            "attributions": _object(by_input),
            "convergence_delta": {"type": ["number", "null"]},
        },
    )
    outputs = [spec.name for spec in signature.outputs if spec.is_float]
    return _object(
        {
            "explanations": _list(entry),
            "method": {"type": "string"},
            "output": {"enum": outputs},
        },
        {"gradients": _GRADIENTS, "activations": _ACTIVATIONS},
    )


def infer_request(signature: Signature) -> Schema:
    """What `/v2/models/NAME/infer` takes, in JSON."""
    inputs = [_tensor(spec) for spec in signature.inputs]
    output = _object({"name": {"type": "string"}}, {"parameters": {"type": "object"}})
    names = [spec.name for spec in signature.outputs]
    output["properties"]["name"]["description"] = (
        f"One of {', '.join(names)}, or activations/LAYER."
    )
    return _object(
        {"inputs": {**_list({"anyOf": inputs}), "minItems": len(inputs), "maxItems": len(inputs)}},
        {"id": {"type": "string"}, "outputs": _list(output), "parameters": {"type": "object"}},
    )


def infer_answer(signature: Signature) -> Schema:
    """What it answers."""
    tensor = _object(
        {
            "name": {"type": "string"},
            "shape": _SHAPE,
            "datatype": {"type": "string"},
            "data": {"type": "array"},
        },
        {"parameters": {"type": "object"}},
    )
    return _object(
        {
            "model_name": {"const": signature.model},
            "model_version": {"const": signature.model_version},
            "outputs": _list(tensor),
        },
        {"id": {"type": "string"}, "parameters": {"type": "object"}},
    )


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": items}


def _tensor(spec: TensorSpec) -> Schema:
    sizes = [
        {"const": size} if size >= 0 else {"type": "integer", "minimum": 1} for size in spec.shape
    ]
    shape = {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}
    shape["description"] = f"{list(spec.shape)}, where -1 is any size"
    return _object(
        {
            "name": {"const": spec.name},
            "shape": shape,
            "datatype": {"const": DATATYPES[spec.dtype]},
            "data": {"type": "array", "description": "Flat, or nested as the shape says."},
        },
        {"parameters": {"type": "object"}},
    )


def _value(spec: TensorSpec, signature: Signature, *, answer: bool = False) -> Schema:
    whole = _nested(spec, spec.shape, answer)
    if not signature.row_axis:
        return whole
    return {"anyOf": [whole, _row(spec, answer=answer)]}


def _row(spec: TensorSpec, *, answer: bool = False) -> Schema:
    return _nested(spec, spec.shape[1:], answer)


def _nested(spec: TensorSpec, shape: tuple[int, ...], answer: bool) -> Schema:
    if not shape:
        return _element(spec, answer)
    size, *rest = shape
    schema: Schema = {"type": "array", "items": _nested(spec, tuple(rest), answer)}
    if size >= 0:
        return {**schema, "minItems": size, "maxItems": size}
    return schema if answer else {**schema, "minItems": 1}


def _element(spec: TensorSpec, answer: bool) -> Schema:
    kind = "number" if spec.is_float else "boolean" if spec.dtype == "bool" else "integer"
    # JSON has no word for NaN and infinity but null.
    schema: Schema = {"type": ["number", "null"] if answer and kind == "number" else kind}
    if spec.minimum is not None:
        schema["minimum"] = spec.minimum
    if spec.maximum is not None:
        schema["maximum"] = spec.maximum
    return schema
