"""Ahead-of-time compilation: the eager module, plain and with statistics, made machine code."""

import math
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from export.definition import Definition
from export.errors import ExportError
from export.inputs import Example
from export.layers import Call, watch
from formats.compiled import FILE_NAME, OBSERVED_FILE, PLAIN_FILE, Compiled
from formats.engines import AOT, Engine
from formats.layers import Layer
from formats.signature import Signature
from formats.structure import answered

__all__ = ["check_compiler", "compile_graphs", "remove"]

_ROWS: Final = 3
_RELU: Final = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


@dataclass
class _Record:
    layer: int
    call: int
    part: int
    tensor: Tensor
    axis: int


def check_compiler() -> None:
    """Make sure that there is a C++ compiler.

    Raises:
        ExportError: there is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ExportError(
            f"--engine aot compiles with a C++ compiler, and there is no {compiler!r}",
            hint="install g++, or name another in CXX; the server needs none",
        )


def compile_graphs(
    definition: Definition,
    signature: Signature,
    paths: Sequence[str],
    layers: Sequence[Layer] | None,
    folder: Path,
) -> tuple[Engine, ...]:
    """Compile the module, and the module with statistics of its chosen layers.

    Args:
        definition: the eager module.
        signature: says which axes of the inputs are free.
        paths: of the outputs.
        layers: those hooked, in the order of layers.json; None for no observed graph.
        folder: gets `aot.json` and the compiled graphs, if all goes well.

    Returns:
        Nothing, or the engine with why torch.export or the compiler refuse this module.
    """
    try:
        inputs = _inputs(definition.examples, signature)
        axes = _free_axes(signature)
        _compile(_Plain(definition.module, paths), inputs, axes, folder / PLAIN_FILE)
        records: tuple[tuple[int, int, int], ...] = ()
        if layers is not None:
            observed = _Observed(definition.module, paths, layers)
            _compile(observed, inputs, axes, folder / OBSERVED_FILE)
            records = observed.records(inputs)
        Compiled(tuple(paths), records, len(layers or ())).write(folder)
    except Exception as error:  # whatever torch says of this module: TorchScript serves then
        remove(folder)
        return (Engine(AOT, False, 0.0, f"it cannot be compiled: {_first_words(error)}"),)
    return ()


def remove(folder: Path) -> None:
    """Remove what `compile_graphs` wrote."""
    for name in (FILE_NAME, PLAIN_FILE, OBSERVED_FILE):
        (folder / name).unlink(missing_ok=True)


def _first_words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


class _Plain(nn.Module):
    """A module whose outputs are a flat list, in the order of the signature."""

    def __init__(self, module: nn.Module, paths: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.paths = list(paths)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        found = dict(answered(self.module(*inputs)))
        for path, leaf in found.items():
            if not isinstance(leaf, Tensor):
                raise TypeError(f"output {path or 'of forward'} is no tensor")
        return [found[path] for path in self.paths]


class _Observed(_Plain):
    """The same, with two more outputs: joined statistics, and sizes; see `formats.compiled`."""

    def __init__(self, module: nn.Module, paths: Sequence[str], layers: Sequence[Layer]) -> None:
        super().__init__(module, paths)
        self.layers = list(layers)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        outputs, records = self._run(inputs)
        vectors: list[Tensor] = []
        sizes: list[Tensor] = []
        for one in records:
            values = _rows_first(one.tensor, one.axis)
            vectors += _five(values)
            sizes += [
                torch.full((1,), size, dtype=torch.int64)
                for size in (values.shape[0], math.prod(values.shape[1:]))
            ]
        joined = torch.cat(vectors) if vectors else torch.zeros(0)
        return [*outputs, joined, torch.cat(sizes) if sizes else torch.zeros(0, dtype=torch.int64)]

    def records(self, inputs: Example) -> tuple[tuple[int, int, int], ...]:
        """Return what the vectors belong to; without branches, every input has the same."""
        with torch.no_grad():
            _, records = self._run(tuple(part.clone() for part in inputs))
        return tuple((one.layer, one.call, one.part) for one in records)

    def _run(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[_Record]]:
        with watch(self.module, [layer.name for layer in self.layers if layer.chosen]) as calls:
            outputs = super().forward(*inputs)
        return outputs, _records(calls, self.layers)


def _records(calls: Sequence[Call], layers: Sequence[Layer]) -> list[_Record]:
    """Put what hooks saw in the order in which a compiled hook's vectors come."""
    position = {layer.name: number for number, layer in enumerate(layers)}
    counted: dict[str, int] = {}
    records = []
    for call in calls:
        number = counted.get(call.name, 0)
        counted[call.name] = number + 1
        layer = position[call.name]
        for part, (_, tensor) in enumerate(call.parts):
            if tensor is not None:
                axes = layers[layer].axes
                axis = axes[part] if part < len(axes) else -1
                records.append(_Record(layer, number, part, tensor, axis))
    return sorted(records, key=lambda one: (one.layer, one.call, one.part))


def _rows_first(tensor: Tensor, axis: int) -> Tensor:
    """Return real numbers with the rows on axis 0 and at least one more axis, not copied."""
    values = tensor.abs() if tensor.is_complex() else tensor
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.to(torch.float32)
    elif not values.is_floating_point():
        values = values.to(torch.float64)
    if axis < 0 or axis >= values.ndim:
        values = values.unsqueeze(0)
    elif axis > 0:
        values = values.movedim(axis, 0)
    return values.unsqueeze(1) if values.ndim == 1 else values


def _five(values: Tensor) -> list[Tensor]:
    """Return mean, population variance, minimum, maximum and 2-norm of the signs of each row.

    Written for a compiler that makes one pass of all of it: over the axes as they lie, because a
    matrix of rows would be a copy, and with nothing decided by values. The mean square less the
    squared mean loses digits where the mean is large, so values are shifted first by the mean of
    about √n of them: then, whatever the values are, the squared mean is at most √n variances, and
    usually less than one (Chan, Golub and LeVeque, The American Statistician 37(3), 1983).
    """
    axes = list(range(1, values.ndim))
    if 0 in values.shape[1:]:
        return [values.new_full((values.shape[0],), float("nan")) for _ in range(5)]
    sample = values
    for axis in axes:
        size = values.shape[axis]
        step = math.isqrt(size) if isinstance(size, int) else 2
        sample = sample[(slice(None),) * axis + (slice(None, None, step),)]
    shift = sample.mean(axes, keepdim=True)
    shifted = values - shift
    mean = shifted.mean(axes)
    variance = (shifted * shifted).mean(axes) - mean * mean
    signs = (values != 0).to(values.dtype).sum(axes).sqrt()
    return [
        mean + shift.flatten(),
        variance.clamp_min(0),
        values.amin(axes),
        values.amax(axes),
        signs,
    ]


def _inputs(examples: Sequence[Example], signature: Signature) -> Example:
    """Return an input to export with: a size of 1 would be taken for one that never changes."""
    example = max(examples, key=lambda case: min(min(part.shape, default=1) for part in case))
    if not signature.row_axis:
        return tuple(part.contiguous() for part in example)
    return tuple(part[:1].repeat(_ROWS, *[1] * (part.ndim - 1)).contiguous() for part in example)


def _free_axes(signature: Signature) -> tuple[dict[int, Any], ...]:
    rows = torch.export.Dim("rows", min=1)
    return tuple(
        {
            axis: rows
            if axis == 0 and signature.row_axis
            else torch.export.Dim(f"input{number}_axis{axis}", min=1)
            for axis, size in enumerate(spec.shape)
            if size == -1
        }
        for number, spec in enumerate(signature.inputs)
    )


def _compile(
    module: nn.Module, inputs: Example, axes: tuple[dict[int, Any], ...], target: Path
) -> None:
    import torch._inductor

    # Not inference_mode: its tensors cannot be exported.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=(axes,))
        _keep_nan(program.graph_module)
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(target),
            inductor_configs={"freezing": _has_convolutions(module)},
        )


def _has_convolutions(module: nn.Module) -> bool:
    # Freezing packs weights for oneDNN, which pays for convolutions; for a small linear layer its
    # calls cost more than the product.
    return any(isinstance(layer, nn.modules.conv._ConvNd) for layer in module.modules())


def _keep_nan(program: torch.fx.GraphModule) -> None:
    """Write ReLU as a clamp from below: oneDNN's own ReLU turns NaN into 0."""
    for part in program.modules():
        if not isinstance(part, torch.fx.GraphModule):
            continue
        for node in part.graph.nodes:
            if node.op == "call_function" and node.target in _RELU:
                node.target = torch.ops.aten.clamp_min.default
                node.args = (node.args[0], 0)
        part.recompile()
