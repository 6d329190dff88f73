"""Graphs that AOTInductor compiled at export, loaded: no compiler is needed for that."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from formats.compiled import OBSERVED_FILE, PLAIN_FILE, Compiled

__all__ = ["load"]

_SHAPES: Final = 256


def load(folder: Path, *, observed: bool) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """Load the compiled graphs of an archive, for the CPU.

    Args:
        folder: where `aot.json` and the compiled graphs are.
        observed: whether to load the observed graph, too.

    Returns:
        What `engine.Engine` calls `plain` and `summary`. Outputs come as a dict by path.

    Raises:
        FormatError: `aot.json` is missing or damaged.
        RuntimeError: torch cannot load a graph.
    """
    compiled = Compiled.read(folder)
    run = _runner(folder / PLAIN_FILE)
    run_observed = _runner(folder / OBSERVED_FILE) if observed else None
    # Sizes follow from the inputs' shapes, of which there are few.
    known: dict[tuple[torch.Size, ...], list[list[int]]] = {}

    def plain(*inputs: Tensor) -> dict[str, Tensor]:
        return dict(zip(compiled.paths, run(inputs), strict=True))

    def summary(*inputs: Tensor) -> tuple[dict[str, Tensor], list[list[int]], Tensor]:
        assert run_observed is not None
        *outputs, joined, sizes = run_observed(inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        codes = known.get(shapes)
        if codes is None:
            codes = compiled.codes(sizes.tolist())
            if len(known) < _SHAPES:
                known[shapes] = codes
        return dict(zip(compiled.paths, outputs, strict=True)), codes, joined

    return plain, summary if observed else None


def _runner(path: Path) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        # Compiled for contiguous inputs, and nothing checks that they are.
        outputs: list[Tensor] = loader.run([tensor.contiguous() for tensor in inputs])
        return outputs

    return run
