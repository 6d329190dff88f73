"""Verified cases that travel in the archive: inputs and eager answers, to verify with elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from export.eager import Reference
from export.inputs import Example
from formats.signature import Signature

__all__ = ["FILE_NAME", "read_cases", "travelling", "write_cases"]

FILE_NAME: Final = "cases.npz"
_MOST: Final = 16
_BYTES: Final = 8 << 20


def write_cases(path: Path, observed: Reference) -> None:
    """Write some cases and what the eager module answers, a bounded number of bytes.

    Taken evenly from all; where they are too large together, the smallest go in.
    """
    arrays: dict[str, Any] = {}
    for number, position in enumerate(travelling(observed)):
        for kind, tensors in (
            ("input", observed.cases[position]),
            ("output", observed.answers[position]),
        ):
            # By number: NumPy takes names as keyword arguments, and has some of its own.
            for place, tensor in enumerate(tensors):
                arrays[f"case_{number}_{kind}_{place}"] = _to_numpy(tensor)
    np.savez_compressed(path, **arrays)


def read_cases(path: Path, signature: Signature) -> tuple[list[Example], list[list[Tensor]]]:
    """Return the inputs and the eager answers that `write_cases` wrote.

    Raises:
        ValueError: the file is no such file.
    """
    cases: list[Example] = []
    answers: list[list[Tensor]] = []
    with np.load(path, allow_pickle=False) as stored:
        while f"case_{len(cases)}_output_0" in stored:
            start = f"case_{len(cases)}"
            cases.append(
                tuple(
                    _to_tensor(stored[f"{start}_input_{place}"], spec.dtype)
                    for place, spec in enumerate(signature.inputs)
                )
            )
            answers.append(
                [
                    _to_tensor(stored[f"{start}_output_{place}"], spec.dtype)
                    for place, spec in enumerate(signature.outputs)
                ]
            )
    return cases, answers


def travelling(observed: Reference) -> list[int]:
    """Return the numbers of the cases that `write_cases` writes."""
    sizes = [
        sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in (*case, *outputs))
        for case, outputs in zip(observed.cases, observed.answers, strict=True)
    ]
    step = -(-len(sizes) // _MOST)
    chosen = _smallest(range(0, len(sizes), step), sizes)
    return chosen or _smallest(range(len(sizes)), sizes)


def _smallest(positions: Sequence[int], sizes: Sequence[int]) -> list[int]:
    left = _BYTES
    chosen = []
    for position in sorted(positions, key=lambda position: sizes[position])[:_MOST]:
        left -= sizes[position]
        if left < 0:
            break
        chosen.append(position)
    return sorted(chosen)


def _to_numpy(tensor: Tensor) -> "np.ndarray[Any, Any]":
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return wide.contiguous().numpy()


def _to_tensor(array: "np.ndarray[Any, Any]", dtype: str) -> Tensor:
    return torch.from_numpy(array).to(getattr(torch, dtype))
