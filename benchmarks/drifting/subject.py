"""An archive whose layers are looked at, with a fault in its weights if need be."""

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import torch
from torch import Tensor

from engine import SUMMARY, observed_graph
from export.baseline import Row, summarise
from formats.activation import ActivationRecord
from formats.baseline import STATISTICS, Baseline
from formats.layers import Layers
from formats.observation import STATISTICS as MODE
from formats.observation import cut, read
from handlers.observe import Observation
from observe.lines import Columns, decode

__all__ = ["FAULTS", "Subject"]


def _kill(module: Any) -> None:
    convolution = getattr(module.features, "2")
    convolution.weight[0].zero_()
    convolution.bias[0].zero_()


def _scale(module: Any) -> None:
    getattr(module.features, "0").weight.mul_(1.2)


def _explode(module: Any) -> None:
    getattr(module.features, "2").weight.mul_(100)


def _negate(module: Any) -> None:
    getattr(module.features, "6").bias.sub_(100)


FAULTS: Final[Mapping[str, tuple[str, Callable[[Any], None]]]] = {
    "killed": ("one of 32 channels of the second convolution is zero", _kill),
    "scaled": ("the first convolution's weights are 1.2 times what they were", _scale),
    "exploding": ("the second's are 100 times what they were", _explode),
    "dead": ("a bias of -100 before the third ReLU", _negate),
}
"""By name: what is wrong, and what does it to a module."""


class Subject:
    """A model whose single rows are recorded as a server would.

    Args:
        archive: a `.mar`.
        fault: one of `FAULTS`, or None.

    Attributes:
        name: of the model.
        baseline: that of the archive.
    """

    def __init__(self, archive: Path, fault: str | None = None) -> None:
        self.name = archive.stem
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
            self.baseline = Baseline.read(Path(folder))
            self._layers = Layers.read(Path(folder)).hooked
            module: Any = torch.jit.load(f"{folder}/model.pt").eval()
        if fault is not None:
            with torch.no_grad():
                FAULTS[fault][1](module)
        self._graph = observed_graph(module, [layer for layer in self._layers if layer.chosen])

    def records(self, images: Tensor, rows: int = 1) -> Columns:
        """Return activation records of images, float32 [n, 8, 8], in requests of so many rows."""
        return decode(self.lines(images, rows))

    def lines(self, images: Tensor, rows: int = 1) -> Iterator[bytes]:
        """Yield the same as lines of a log, a millisecond apart, without their ends."""
        for number, part in enumerate(images.split(rows)):
            with torch.no_grad():
                _, codes, joined = getattr(self._graph, SUMMARY)(part.clone())
            found = read(self._layers, codes, MODE)
            vectors = cut(joined.tolist(), found, MODE)
            seen = Observation(found, vectors, len(part)).activations(0, len(part), None)
            time = (
                f"2026-01-01T00:{number // 60_000:02}:{number // 1000 % 60:02}.{number % 1000:03}Z"
            )
            record = ActivationRecord(
                time, self.name, "1.0", f"r{number}", None, None, "sampled", len(part), seen
            )
            yield orjson.dumps(record.to_json())


def rows(records: Columns) -> list[Row]:
    """Return the statistics of records of one row each, as a baseline is made of them."""
    found: list[dict[str, dict[str, float | None]]] = [{} for _ in records.record["rows"]]
    # The log's columns are elements, the baseline's statistics, non_finite.
    for numbers, (record, layer, *_) in zip(
        records.value[:, 1:-1].tolist(), records.value_of.tolist(), strict=True
    ):
        found[record][records.layers[layer][2]] = dict(zip(STATISTICS, numbers, strict=True))
    return list(found)


def baseline_of(records: Columns) -> Baseline:
    """Return the baseline of records of one row each."""
    return summarise("calibration", rows(records))
