"""The model: loaded from an unpacked archive, frozen, on its device, and warm."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from engine import make, set_mode, unoptimized
from formats.certificate import Certificate
from formats.engines import TORCHSCRIPT
from formats.integrity import check_files
from formats.layers import Layer, Layers
from formats.observation import INSPECT, OFF, RAW, STATISTICS, cut, read
from formats.signature import Signature, TensorSpec
from formats.structure import answered
from handlers.differentiable import Differentiable
from handlers.engines import apart, refusal, say_fallen_back
from handlers.errors import ModelError
from handlers.faults import guarded
from handlers.observe import Inspection, Observation, to_lists
from handlers.values import Array

__all__ = ["Model", "use_threads"]

MODULE_FILE: Final = "model.pt"
WARM_UP_FILE: Final = "warmup.npz"
LAYERS_FILE: Final = "layers.json"

# The profiling executor records on the first call of a shape and compiles on the second.
_WARM_UP_CALLS: Final = 3
_WARM_UP_ROWS: Final = 8


class Model:
    """A TorchScript module and what the export said of it.

    Attributes:
        signature: its interface.
        certificate: what was verified, and whether rows may share a batch.
        device: where it runs.
        layers: those that hooks are compiled into, in execution order; none for a traced model.
    """

    def __init__(self, folder: Path, device: torch.device, engine: str = TORCHSCRIPT) -> None:
        """Load the module, freeze it for inference and warm it up.

        Args:
            folder: an unpacked archive.
            device: where to run.
            engine: one of `formats.engines.ENGINES`; where it cannot serve here, TorchScript does,
                and a line on stderr says why.

        Raises:
            FormatError: a file of the archive is missing, changed, or of another version.
            RuntimeError: the module cannot be loaded, or fails on its own example.
        """
        self.certificate = Certificate.read(folder)
        check_files(folder, self.certificate.files)
        self.signature = Signature.read(folder)
        self.device = device
        self._folder = folder
        # The file keeps the graph whose gradients are right; freezing drops `detach`, so the
        # frozen graph is for answers only.
        self._paths: list[str] = []
        self._whole: Any = torch.jit.load(str(folder / MODULE_FILE), map_location=device).eval()
        self.layers: tuple[Layer, ...] = ()
        chosen: list[Layer] | None = None
        if (folder / LAYERS_FILE).exists():
            self.layers = Layers.read(folder).hooked
            chosen = [layer for layer in self.layers if layer.chosen]
        examples = list(self._examples(folder / WARM_UP_FILE))
        if engine != TORCHSCRIPT:
            why = refusal(engine, self.certificate, device)
            why = why or self._use_other(engine, chosen, examples)
            if not why:
                return
            say_fallen_back(self.signature.model, engine, why)
        self._use_torchscript(chosen)
        self._warm_up(examples)

    @property
    def engine(self) -> str:
        """The name of what runs the model."""
        return self._engine.name

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the module once.

        Args:
            arrays: one per input, of the signature's dtypes, with the row axis where it has one.

        Returns:
            One array per output; bfloat16 comes back as float32.

        Raises:
            ModelError: the module raised; the message is the innermost line of its error.
            RequestError: there was not enough memory (status 507).
        """
        return self._outputs(self._call(self._engine.plain, arrays))

    def observe(self, arrays: Sequence[Array], rows: int) -> tuple[list[Array], Observation]:
        """Run the observed graph once: `run`, and what the chosen layers look like.

        Args:
            arrays: as for `run`.
            rows: how many rows they hold.

        Raises:
            ModelError, RequestError: as `run` does.
        """
        result, codes, joined = self._call(self._engine.summary, arrays)
        records = read(self.layers, codes, STATISTICS)
        vectors = cut(joined.cpu().tolist(), records, STATISTICS)
        return self._outputs(result), Observation(records, vectors, rows)

    def inspect(self, arrays: Sequence[Array], rows: int) -> Inspection:
        """Run one request again, slowly, counting in every layer what is not finite."""
        _, codes, found = self._special(self.layers, INSPECT, arrays)
        return Inspection(read(self.layers, codes, INSPECT), to_lists(found), rows)

    def raw(self, arrays: Sequence[Array], wanted: frozenset[str]) -> dict[str, Array]:
        """Run one request again and return what some layers put out, by activation key."""
        layers = [layer for layer in self.layers if layer.name in wanted]
        _, codes, found = self._special(layers, RAW, arrays)
        tensors = [tensor for layer in found for tensor in layer]
        return {one.key: to_numpy(tensors[one.first]) for one in read(self.layers, codes, RAW)}

    @property
    def differentiable(self) -> Differentiable:
        """The module with its gradients."""
        return Differentiable(self._whole, self.layers, self._paths)

    def _outputs(self, result: Any) -> list[Array]:
        flat = answered(result)
        paths = [path for path, _ in flat]
        if not self._paths:
            self._paths = paths
        elif paths != self._paths:
            # A dict whose keys come in another order is put in order; other keys are no answer.
            by_path = dict(flat)
            if by_path.keys() != set(self._paths):
                raise ModelError(
                    "outputs_changed",
                    f"the model returned {', '.join(paths)[:200] or 'nothing'} for this input",
                    status=500,
                    expected=", ".join(self._paths),
                )
            flat = [(path, by_path[path]) for path in self._paths]
        return [to_numpy(leaf) for _, leaf in flat]

    def _special(self, layers: Sequence[Layer], mode: int, arrays: Sequence[Array]) -> Any:
        # Rare and one at a time, so the graph that is not frozen serves, and no memory is spent
        # on a third and fourth graph.
        set_mode(self._whole, layers, mode)
        try:
            with unoptimized():
                return self._call(self._whole.observe, arrays)
        finally:
            set_mode(self._whole, [], OFF)

    def _call(self, function: Any, arrays: Sequence[Array]) -> Any:
        tensors = self.tensors(arrays)
        with torch.inference_mode(), guarded():
            return function(*tensors)

    def tensors(self, arrays: Sequence[Array]) -> list[torch.Tensor]:
        """Return what the module takes: one tensor for each input, on its device."""
        return [
            self._tensor(array, spec)
            for array, spec in zip(arrays, self.signature.inputs, strict=True)
        ]

    def _tensor(self, array: Array, spec: TensorSpec) -> torch.Tensor:
        # A raw input is used where it lies in the body, unless torch could not.
        fit = np.require(array, requirements=("C", "A", "W"))
        tensor = torch.from_numpy(fit.copy() if self._writes else fit)
        return tensor.to(self.device, getattr(torch, spec.dtype))

    def _examples(self, path: Path) -> Iterator[tuple[list[Array], int]]:
        """Yield what to warm up with, each with its number of rows."""
        with np.load(path, allow_pickle=False) as stored:
            example = [stored[f"input_{n}"] for n in range(len(self.signature.inputs))]
        batching = self.certificate.batching
        for rows in (1, _WARM_UP_ROWS) if batching.independent else (1,):
            batch = example
            if self.signature.row_axis:
                batch = [np.resize(array, (rows, *array.shape[1:])) for array in example]
            yield batch, rows

    def _warm_up(self, examples: Sequence[tuple[list[Array], int]]) -> list[list[Array]]:
        """Run each example until its graphs are compiled; return the outputs of every graph."""
        answers = []
        for batch, rows in examples:
            for _ in range(_WARM_UP_CALLS):
                last = [self.run(batch)]
                if self._engine.summary is not None:
                    last.append(self.observe(batch, rows)[0])
            answers += last
        return answers

    def _use_torchscript(self, chosen: Sequence[Layer] | None) -> None:
        self._engine = make(TORCHSCRIPT, self._whole, chosen)
        self._writes = _writes_to_inputs(self._engine.plain)

    def _use_other(
        self,
        name: str,
        chosen: Sequence[Layer] | None,
        examples: Sequence[tuple[list[Array], int]],
    ) -> str:
        """Let another engine serve if it answers the examples alike, else say why not."""
        self._use_torchscript(None)
        expected = [self.run(batch) for batch, _ in examples]
        graphs = 1 if chosen is None else 2
        try:
            self._engine = make(name, self._whole, chosen, self._folder)
            for number, actual in enumerate(self._warm_up(examples)):
                why = apart(expected[number // graphs], actual, self.certificate.tolerance)
                if why:
                    return why
        except Exception as error:  # whatever torch, or its compiled code, says of it
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return f"{type(error).__name__}: {lines[-1] if lines else ''}"
        return ""


def use_threads(configured: int | None) -> int:
    """Give this worker one pool of intra-op threads, and return its size.

    Args:
        configured: the archive's setting, or None. The environment's VITRINE_THREADS goes
            before it; without either, one thread, because workers share the cores.

    Raises:
        ValueError: VITRINE_THREADS is not a positive whole number.
    """
    text = os.environ.get("VITRINE_THREADS", "")
    if text and not (text.isdigit() and int(text) > 0):
        raise ValueError(f"VITRINE_THREADS is {text!r}; expected a whole number of 1 or more")
    threads = int(text) if text else configured or 1
    torch.set_num_threads(threads)
    return threads


def _writes_to_inputs(module: Any) -> bool:
    """Tell whether a graph may work in place on what it is given, which a second run needs."""
    graph = module.inlined_graph
    aliases = graph.alias_db()
    return any(aliases.has_writers(value) for value in graph.inputs())


def to_numpy(leaf: Any) -> Array:
    tensor = leaf if isinstance(leaf, torch.Tensor) else torch.as_tensor(leaf)
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape)
