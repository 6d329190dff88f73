"""The model: loaded from an unpacked archive, frozen, on its device, and warm."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from formats.certificate import Certificate
from formats.signature import Signature, TensorSpec
from formats.structure import flatten
from handlers.decode import Array
from handlers.errors import ModelError, RequestError

__all__ = ["Model", "use_threads"]

MODULE_FILE: Final = "model.pt"
WARM_UP_FILE: Final = "warmup.npz"

# The profiling executor records on the first call of a shape and compiles on the second.
_WARM_UP_CALLS: Final = 3
_WARM_UP_ROWS: Final = 8

logger = logging.getLogger("vitrine")


class Model:
    """A TorchScript module and what the export said of it.

    Attributes:
        signature: its interface.
        certificate: what was verified, and whether rows may share a batch.
        device: where it runs.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load the module, freeze it for inference and warm it up.

        Args:
            folder: an unpacked archive.
            device: where to run.

        Raises:
            FormatError: a document of the archive is missing or of another version.
            RuntimeError: the module cannot be loaded, or fails on its own example.
        """
        self.signature = Signature.read(folder)
        self.certificate = Certificate.read(folder)
        self.device = device
        # The file keeps the graph whose gradients are right; freezing drops `detach`, so the
        # frozen graph is for answers only.
        module = torch.jit.load(str(folder / MODULE_FILE), map_location=device).eval()
        self._module: Any = torch.jit.freeze(module)
        self._warm_up(folder / WARM_UP_FILE)

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
        tensors = [
            self._tensor(array, spec)
            for array, spec in zip(arrays, self.signature.inputs, strict=True)
        ]
        try:
            with torch.inference_mode():
                result = self._module(*tensors)
                return [_to_numpy(leaf) for _, leaf in flatten(result)]
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise RequestError(
                "out_of_memory", "not enough memory for this request", status=507
            ) from None
        except (RuntimeError, IndexError, ValueError) as error:
            raise _model_error(error) from error

    def _tensor(self, array: Array, spec: TensorSpec) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.to(self.device, getattr(torch, spec.dtype))

    def _warm_up(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as stored:
            example = [stored[spec.name] for spec in self.signature.inputs]
        batching = self.certificate.batching
        for rows in (1, _WARM_UP_ROWS) if batching.independent else (1,):
            batch = example
            if self.signature.row_axis:
                batch = [np.resize(array, (rows, *array.shape[1:])) for array in example]
            for _ in range(_WARM_UP_CALLS):
                self.run(batch)


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


def _to_numpy(leaf: Any) -> Array:
    tensor = leaf if isinstance(leaf, torch.Tensor) else torch.as_tensor(leaf)
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape)


def _model_error(error: Exception) -> RequestError:
    # A TorchScript error ends with "<Class>: <message>"; above it stands the scripted source.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    print(f"vitrine: the model raised: {last!a}", file=sys.stderr, flush=True)
    return ModelError(
        "model_refused",
        f"the model could not process this input: {ascii(last)[1:-1][:500]}",
        expected="an input that the model's own code accepts",
    )
