"""The signature, found by running the module: names, dtypes, shapes, and the row axis."""

from collections.abc import Sequence

import torch
from torch import Tensor

from export.definition import Definition
from export.eager import Reference, answer
from export.errors import ExportError
from export.inputs import Example
from export.tensors import dtype_name
from formats.document import FormatError
from formats.signature import DTYPES, Signature, TensorSpec

__all__ = ["infer"]


def infer(definition: Definition, observed: Reference) -> Signature:
    """Run the eager module on its examples and on other numbers of rows.

    A dimension is free (-1) if the model file says so, if the examples differ in it or, of an
    output, if any answer does, or if it is the row axis: axis 0 of every input and output, when
    the module takes other numbers of rows and every output follows.

    Raises:
        ExportError: a dtype cannot be served, or the declared names or shapes do not fit.
    """
    where = str(definition.source)
    answers = [answer(definition.module, example) for example in definition.examples]
    row_axis = _has_row_axis(definition, answers) and all(
        output.ndim > 0 and len(output) == len(case[0])
        for case, outputs in zip(observed.cases, observed.answers, strict=True)
        for output in outputs
    )
    inputs = []
    for position, option in enumerate(definition.inputs):
        seen = [example[position] for example in definition.examples]
        shape = _shape(seen, row_axis)
        if option.shape is not None:
            shape = _declared(option.shape, seen, option.name, where)
        spec = TensorSpec(
            option.name,
            _dtype(seen[0], f"input {option.name!r}", where),
            shape,
            option.minimum,
            option.maximum,
            option.image,
        )
        _check_image(spec, row_axis, where)
        inputs.append(spec)
    names = _output_names(definition, [path for path, _ in answers[0]])
    outputs = []
    for position, name in enumerate(names):
        seen = [flat[position] for flat in observed.answers]
        spec = TensorSpec(
            name,
            _dtype(seen[0], f"output {name!r}", where),
            _shape(seen, row_axis),
            labels=definition.labels.get(name, ()),
        )
        _check_labels(spec, where)
        outputs.append(spec)
    unknown = set(definition.labels) - set(names)
    if unknown:
        raise ExportError(
            f"LABELS names {', '.join(sorted(unknown))}, which is no output",
            where=where,
            hint=f"the outputs are {', '.join(names)}",
        )
    return Signature(
        definition.name,
        definition.version,
        definition.description,
        tuple(inputs),
        tuple(outputs),
        row_axis,
    )


def with_rows(example: Example, rows: int) -> Example:
    """Return the example with its rows repeated or cut to the given number."""
    index = torch.arange(rows) % len(example[0])
    return tuple(tensor[index] for tensor in example)


def _has_row_axis(definition: Definition, answers: Sequence[Sequence[tuple[str, Tensor]]]) -> bool:
    example = definition.examples[0]
    if any(tensor.ndim == 0 for tensor in example):
        return False
    rows = len(example[0])
    declared = [option.shape for option in definition.inputs if option.shape]
    if any(shape[0] != -1 for shape in declared) or any(len(part) != rows for part in example):
        return False
    tries = [(rows, answers[0])]
    for other in (1, rows + 1, rows + 2):
        try:
            tries.append((other, answer(definition.module, with_rows(example, other))))
        except Exception:
            return False
    return all(
        tensor.ndim > 0 and len(tensor) == count for count, flat in tries for _, tensor in flat
    )


def _shape(seen: Sequence[Tensor], row_axis: bool) -> tuple[int, ...]:
    if len({tensor.ndim for tensor in seen}) != 1:
        raise ExportError("inputs or answers differ in their number of axes")
    sizes = zip(*(tensor.shape for tensor in seen), strict=True)
    shape = [axis[0] if len(set(axis)) == 1 else -1 for axis in sizes]
    if row_axis:
        shape[0] = -1
    return tuple(shape)


def _declared(
    declared: tuple[int, ...], seen: Sequence[Tensor], name: str, where: str
) -> tuple[int, ...]:
    for tensor in seen:
        fits = len(declared) == tensor.ndim and all(
            wanted in (-1, got) for wanted, got in zip(declared, tensor.shape, strict=True)
        )
        if not fits:
            raise ExportError(
                f"input {name!r} is declared as {list(declared)}, "
                f"but an example has shape {list(tensor.shape)}",
                where=where,
            )
    return declared


def _dtype(tensor: Tensor, what: str, where: str) -> str:
    name = dtype_name(tensor.dtype)
    if name not in DTYPES:
        raise ExportError(
            f"{what} is {name}, which JSON cannot carry",
            where=where,
            hint=f"use one of {', '.join(DTYPES)}",
        )
    return name


def _output_names(definition: Definition, paths: Sequence[str]) -> tuple[str, ...]:
    if not definition.outputs:
        names = tuple(
            path if path[:1].isalpha() else f"output_{path}" if path else "output" for path in paths
        )
        if len(set(names)) == len(names):
            return names
        return tuple(f"output_{number}" for number in range(len(paths)))
    if len(definition.outputs) != len(paths):
        raise ExportError(
            f"OUTPUTS names {len(definition.outputs)}, but the module returns {len(paths)} tensors",
            where=str(definition.source),
            hint="name every tensor in the order it is returned; nested ones depth first",
        )
    return definition.outputs


def _check_image(spec: TensorSpec, row_axis: bool, where: str) -> None:
    if spec.image is None:
        return
    try:
        spec.image.layout(spec.shape[1:] if row_axis else spec.shape)
    except FormatError as error:
        raise ExportError(
            f"INPUTS[{spec.name!r}]: {error}",
            where=where,
            hint="[height, width] or [channels, height, width] or [height, width, channels] for "
            "each row, with 1 channel for mode L and 3 for RGB",
        ) from None


def _check_labels(spec: TensorSpec, where: str) -> None:
    if not spec.labels:
        return
    classes = spec.shape[-1] if spec.shape else 0
    if classes != len(spec.labels) or spec.dtype in ("bool",):
        raise ExportError(
            f"LABELS[{spec.name!r}] has {len(spec.labels)} labels, but the output is {spec}",
            where=where,
            hint="one label for each entry of the output's last axis",
        )
