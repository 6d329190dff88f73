"""What is to be exported: read from a model file, or put together on the command line."""

import importlib
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from export.errors import ExportError
from formats.document import FormatError
from formats.image import Image
from formats.signature import DTYPES

__all__ = ["PRECISIONS", "Definition", "InputOptions", "from_factory", "from_model_file"]

# TorchServe takes these in a URL; and a name becomes a file's name.
_NAME: Final = re.compile(r"(?=.{1,100}$)[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_VERSION: Final = re.compile(r"[0-9]+(\.[0-9]+)*")

PRECISIONS: Final = ("bfloat16",)
"""What weights and computation can be brought to."""


@dataclass(frozen=True)
class InputOptions:
    """What a definition says of one input beyond its example.

    Attributes:
        name: as clients write it.
        shape: with -1 for free dimensions, or None to take it from the examples.
        minimum: least value allowed, or None.
        maximum: greatest value allowed, or None.
        image: how a picture becomes it, or None.
    """

    name: str
    shape: tuple[int, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    image: Image | None = None


@dataclass(frozen=True)
class DeclaredBatching:
    """What a model file says of its rows, instead of what is measured.

    Attributes:
        independent: whether requests may share a batch.
        reason: why the author knows better; goes into the certificate.
    """

    independent: bool
    reason: str


@dataclass(frozen=True)
class Definition:
    """A model to export.

    Attributes:
        name: the name it is served under.
        version: e.g. "1.0".
        description: one line, may be empty.
        source: the file the model is defined in, for error messages.
        module: in evaluation mode, with its weights.
        examples: each a tuple of tensors in the order of `forward`'s parameters.
        inputs: one per tensor of an example.
        outputs: names, or empty to derive them from what the model returns.
        labels: output name to class names.
        layers: which layers to observe; see `export.layers.choose`.
        batching: whether rows are independent, where the model file decides that itself.
        calibration: inputs like the examples, of what the model was built for; may be empty.
        activation_log: the log's settings, for model-config.yaml; the worker checks them.
        recording: the same of the recording of requests.
        precision: "bfloat16" to compute in that, or empty to leave the module as it is.
    """

    name: str
    version: str
    description: str
    source: Path
    module: nn.Module
    examples: tuple[tuple[Tensor, ...], ...]
    inputs: tuple[InputOptions, ...]
    outputs: tuple[str, ...] = ()
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    calibration: tuple[tuple[Tensor, ...], ...] = ()
    batching: "DeclaredBatching | None" = None
    activation_log: dict[str, Any] = field(default_factory=dict)
    recording: dict[str, Any] = field(default_factory=dict)
    precision: str = ""


def from_model_file(path: Path, name: str | None = None, version: str | None = None) -> Definition:
    """Read a model file: a Python file with `build()`, `examples()` and a few names.

    Args:
        path: the file.
        name: the name to serve it under; by default the file's.
        version: goes before the file's VERSION.

    Raises:
        ExportError: the file is missing, raises, or lacks something.
    """
    if not path.is_file():
        raise ExportError("there is no such file", where=str(path), hint="name a model file")
    if path.suffix != ".py":
        raise ExportError("it is not a .py file", where=str(path), hint="name a model file")
    loaded = _import_file(path)
    build = _function(loaded, path, "build", "returns the nn.Module with its weights")
    examples = _function(loaded, path, "examples", "returns a list of example inputs")
    module = _module(_call(build, path), path)
    definition = _definition(
        name=name or path.stem,
        version=version or str(getattr(loaded, "VERSION", "1.0")),
        description=(inspect.getdoc(loaded) or "").partition("\n")[0],
        source=path,
        module=module,
        examples=_call(examples, path),
        inputs=getattr(loaded, "INPUTS", None),
        outputs=getattr(loaded, "OUTPUTS", ()),
        labels=getattr(loaded, "LABELS", {}),
    )
    layers = _strings(getattr(loaded, "LAYERS", ()), "LAYERS", str(path))
    batching = _batching(getattr(loaded, "BATCHING", None), str(path))
    precision = getattr(loaded, "PRECISION", "")
    if precision not in ("", *PRECISIONS):
        raise ExportError(
            f"PRECISION is {precision!r}", where=str(path), hint=f"one of {', '.join(PRECISIONS)}"
        )
    return replace(
        definition,
        layers=layers,
        batching=batching,
        calibration=_calibration(loaded, path, definition.examples[0]),
        activation_log=_settings(loaded, path, "ACTIVATION_LOG", '{"mode": "asked"}'),
        recording=_settings(loaded, path, "RECORDING", '{"mode": "sampled", "folder": ...}'),
        precision=precision,
    )


def _settings(loaded: ModuleType, path: Path, name: str, hint: str) -> dict[str, Any]:
    value = getattr(loaded, name, {})
    if not isinstance(value, dict):
        raise ExportError(f"{name} is not a dict", where=str(path), hint=hint)
    return value


def _calibration(
    loaded: ModuleType, path: Path, example: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], ...]:
    if not hasattr(loaded, "calibration"):
        return ()
    function = _function(loaded, path, "calibration", "returns inputs like those of examples()")
    cases = _examples(_call(function, path), f"{path}: calibration()")
    kinds = [[(part.dtype, part.ndim) for part in case] for case in (example, cases[0])]
    if kinds[0] != kinds[1]:
        raise ExportError(
            "calibration() and examples() differ in how many tensors an input holds, or in dtype "
            "or number of axes",
            where=str(path),
            hint="return inputs that a client may send",
        )
    return cases


def _batching(value: Any, where: str) -> DeclaredBatching | None:
    if value is None:
        return None
    fields = value if isinstance(value, dict) else {}
    independent, reason = fields.get("independent"), fields.get("reason")
    known = set(fields) <= {"independent", "reason"}
    if not known or not isinstance(independent, bool) or not isinstance(reason, str):
        raise ExportError(
            f"BATCHING is {value!r}",
            where=where,
            hint='{"independent": True, "reason": "why that is so, whatever the export measures"}',
        )
    if not reason.strip():
        raise ExportError("BATCHING has no reason", where=where, hint="say why, in a sentence")
    return DeclaredBatching(independent, reason.strip())


def from_factory(
    factory: str, weights: Path | None, examples: Sequence[Path], name: str, version: str
) -> Definition:
    """Put a definition together from `package.module:factory` and files.

    Args:
        factory: names a callable without arguments that returns an nn.Module.
        weights: a `.safetensors` file with its state dict, or None.
        examples: one `.npy` file per input; axis 0 is the row axis where the model has one.
        name: the name to serve it under.
        version: e.g. "1.0".

    Raises:
        ExportError: one of them cannot be read or does not fit the others.
    """
    module_name, _, attribute = factory.partition(":")
    if not attribute or not module_name:
        raise ExportError(f"--module is {factory!r}", hint="write it as package.module:factory")
    sys.path.insert(0, str(Path.cwd()))
    imported = _call(lambda: importlib.import_module(module_name), Path(factory))
    source = Path(imported.__file__ or module_name)
    build = _function(imported, source, attribute, "returns the nn.Module")
    module = _module(_call(build, source), source)
    if weights is not None:
        _load_weights(module, weights)
    return _definition(
        name=name,
        version=version,
        description=(inspect.getdoc(build) or "").partition("\n")[0],
        source=source,
        module=module,
        examples=[tuple(_load_array(path) for path in examples)],
        inputs=None,
        outputs=(),
        labels={},
    )


def _definition(
    *,
    name: str,
    version: str,
    description: str,
    source: Path,
    module: nn.Module,
    examples: Any,
    inputs: Any,
    outputs: Any,
    labels: Any,
) -> Definition:
    where = str(source)
    if not _NAME.fullmatch(name):
        raise ExportError(
            f"the model name {name!r} cannot stand in a URL",
            where=where,
            hint="use letters, digits, '_', '-' and '.', beginning with a letter or digit",
        )
    if not _VERSION.fullmatch(version):
        raise ExportError(
            f"VERSION (or --model-version) is {version!r}",
            where=where,
            hint='write it as numbers with dots: "1.0"',
        )
    tuples = _examples(examples, where)
    options = _inputs(inputs, module, len(tuples[0]), where)
    _check_bounds(tuples, options, where)
    names = _strings(outputs, "OUTPUTS", where)
    if not isinstance(labels, dict):
        raise ExportError("LABELS is not a dict", where=where, hint="{output name: [label, ...]}")
    return Definition(
        name=name,
        version=version,
        description=description,
        source=source,
        module=module,
        examples=tuples,
        inputs=options,
        outputs=names,
        labels={key: _strings(value, f"LABELS[{key!r}]", where) for key, value in labels.items()},
    )


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"vitrine_model_{path.stem}", path)
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    loaded = importlib.util.module_from_spec(spec)
    # TorchScript looks the source of a class up through its module.
    sys.modules[spec.name] = loaded
    # For good: build() and examples() may import what lies beside the file only when they run.
    sys.path.insert(0, str(path.resolve().parent))
    _call(lambda: loader.exec_module(loaded), path)
    return loaded


def _function(module: ModuleType, path: Path, name: str, does: str) -> Callable[[], Any]:
    function = getattr(module, name, None)
    if not callable(function):
        raise ExportError(
            f"there is no function {name}()",
            where=str(path),
            hint=f"add `def {name}():` that {does}; models/activation_mlp.py is a short example",
        )
    return function  # type: ignore[no-any-return]


def _call(function: Callable[[], Any], path: Path) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _from_user(error, path) from error


def _from_user(error: BaseException, path: Path) -> ExportError:
    """Point at the line of the user's file that an exception came from."""
    where = str(path)
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).name == path.name:
            where = f"{path}:{frame.lineno}"
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).name == path.name:
        where = f"{path}:{error.lineno}"
    return ExportError(f"{type(error).__name__}: {error}", where=where, hint="the file's own code")


def _module(value: Any, source: Path) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise ExportError(
            f"build() returned a {type(value).__name__}",
            where=str(source),
            hint="return a torch.nn.Module",
        )
    return value.eval()


def _examples(value: Any, where: str) -> tuple[tuple[Tensor, ...], ...]:
    hint = "return a list of examples, each a tuple of tensors in the order of forward's parameters"
    if not isinstance(value, (list, tuple)) or not value:
        raise ExportError(f"examples() returned {_kind(value)}", where=where, hint=hint)
    examples = []
    for example in value:
        parts = (example,) if isinstance(example, Tensor) else example
        if not isinstance(parts, tuple) or not all(isinstance(part, Tensor) for part in parts):
            inside = [_kind(part) for part in parts if not isinstance(part, Tensor)]
            what = f", with {inside[0]} in it" if isinstance(parts, tuple) and inside else ""
            raise ExportError(
                f"examples() holds {_kind(example)}{what}",
                where=where,
                hint=f"{hint}; an input that is no tensor (a list, a dict, a number) is not served",
            )
        for part in parts:
            _check_example(part, where)
        examples.append(tuple(part.detach() for part in parts))
    kinds = {tuple((part.dtype, part.ndim) for part in example) for example in examples}
    if len(kinds) != 1 or () in kinds:
        raise ExportError(
            "the examples differ in how many tensors they hold, or in dtype or number of axes",
            where=where,
            hint="sizes along an axis may differ, nothing else",
        )
    return tuple(examples)


def _check_example(tensor: Tensor, where: str) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ExportError("an example is sparse or quantized", where=where, hint="make it dense")
    if tensor.is_complex():
        raise ExportError(
            f"an example is {str(tensor.dtype).removeprefix('torch.')}, which requests cannot "
            f"carry; an input is one of {', '.join(DTYPES)}",
            where=where,
            hint="take real and imaginary parts as a last axis of 2: torch.view_as_real(x) in "
            "examples(), torch.view_as_complex(x) in forward",
        )
    if tensor.numel() == 0:
        raise ExportError(
            "an example is an empty tensor", where=where, hint="give at least one row"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ExportError(
            "an example holds NaN or infinity",
            where=where,
            hint="requests are JSON, which has neither; give finite values",
        )


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)) and not value:
        return "nothing"
    return f"a {type(value).__name__}"


def _inputs(value: Any, module: nn.Module, count: int, where: str) -> tuple[InputOptions, ...]:
    parameters = list(inspect.signature(module.forward).parameters)
    strange = [name for name in parameters if not name.isascii()]
    if strange:
        raise ExportError(
            f"forward's parameter {strange[0]!r} is not ASCII, which TorchScript cannot save",
            where=where,
            hint="rename it; the name that clients use, in INPUTS, may be anything",
        )
    if value is None:
        value = parameters[:count]
        if len(value) != count:
            raise ExportError(
                f"forward takes {', '.join(parameters) or 'nothing'}, "
                f"but an example holds {count} tensors",
                where=where,
                hint="give one tensor for each parameter, and name them in INPUTS",
            )
    options: tuple[InputOptions, ...]
    if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
        raise ExportError("INPUTS has a name that is not a string", where=where)
    if isinstance(value, (list, tuple)):
        options = tuple(InputOptions(name) for name in _strings(value, "INPUTS", where))
    elif isinstance(value, dict):
        options = tuple(_input(name, fields, where) for name, fields in value.items())
    else:
        raise ExportError(
            "INPUTS is neither a list of names nor a dict", where=where, hint='INPUTS = ["image"]'
        )
    if len(options) != count:
        raise ExportError(
            f"INPUTS names {len(options)} inputs, but an example holds {count} tensors",
            where=where,
            hint="name every tensor of an example, in order",
        )
    return options


def _input(name: str, fields: Any, where: str) -> InputOptions:
    known = {"shape", "minimum", "maximum", "image"}
    if not isinstance(fields, dict) or not set(fields) <= known:
        raise ExportError(
            f"INPUTS[{name!r}] is {fields!r}",
            where=where,
            hint=f"a dict with any of {', '.join(sorted(known))}",
        )
    shape, low, high = (fields.get(key) for key in ("shape", "minimum", "maximum"))
    if shape is not None and not (
        isinstance(shape, (list, tuple)) and all(isinstance(size, int) for size in shape)
    ):
        raise ExportError(
            f"INPUTS[{name!r}] has the shape {shape!r}", where=where, hint='e.g. "shape": [-1, 8]'
        )
    numbers = [bound for bound in (low, high) if bound is not None]
    if not all(isinstance(bound, (int, float)) for bound in numbers) or sorted(numbers) != numbers:
        raise ExportError(
            f"INPUTS[{name!r}] has the bounds {low!r} and {high!r}",
            where=where,
            hint="two numbers, the least first",
        )
    image = _image(name, fields.get("image"), where)
    return InputOptions(name, tuple(shape) if shape is not None else None, low, high, image)


def _image(name: str, value: Any, where: str) -> Image | None:
    if value is None:
        return None
    try:
        return Image.from_json(value)
    except FormatError as error:
        raise ExportError(
            f"INPUTS[{name!r}]: image: {error}",
            where=where,
            hint='e.g. "image": {"mode": "RGB", "fit": "crop"}; docs/requests.md has them all',
        ) from None


def _strings(value: Any, what: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ExportError(f"{what} is not a list of strings", where=where)
    if len(set(value)) != len(value):
        raise ExportError(f"{what} names something twice", where=where)
    return tuple(value)


def _check_bounds(
    examples: tuple[tuple[Tensor, ...], ...], options: tuple[InputOptions, ...], where: str
) -> None:
    for example in examples:
        for tensor, option in zip(example, options, strict=True):
            low = -math.inf if option.minimum is None else option.minimum
            high = math.inf if option.maximum is None else option.maximum
            if tensor.min().item() < low or tensor.max().item() > high:
                raise ExportError(
                    f"an example of {option.name!r} lies outside [{low:g}, {high:g}]",
                    where=where,
                    hint="an example must be an input that a client may send",
                )


def _load_weights(module: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        module.load_state_dict(load(path.read_bytes()))
    except OSError as error:
        raise ExportError(
            f"it cannot be read: {error.strerror}", where=str(path), hint="check --weights"
        ) from None
    except SafetensorError as error:
        raise ExportError(
            f"it is not a safetensors file: {error}",
            where=str(path),
            hint="safetensors.torch.save_file(module.state_dict(), path) writes one",
        ) from None
    except RuntimeError as error:
        raise ExportError(
            f"the weights do not fit the module: {' '.join(str(error).split())}", where=str(path)
        ) from None


def _load_array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(
            f"cannot be read: {error}", where=str(path), hint="numpy.save(path, array) writes one"
        ) from None
