"""What is asked of the servers: a model, and requests whose answers are told apart."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["TOLERANCE", "WORKS", "Cases", "Floats", "Work", "answers", "make_cases", "told_apart"]

Floats = NDArray[np.float32]

TOLERANCE: Final = 1e-4
"""How far an answer may be from the expected one, relative to it where it is above 1."""

_ROOT: Final = Path(__file__).resolve().parents[2]
# Two answers must differ by more than both of them may be off.
_APART: Final = 4 * TOLERANCE
_SEED: Final = 0


@dataclass(frozen=True)
class Work:
    """A model and its requests; every request is one row.

    Attributes:
        name: as on the command line.
        title: as in the table.
        model_file: of Vitrine's export.
        input: name of the input.
        shape: of one row.
        output: name of the output.
        outputs: numbers of one answer.
        binary: whether a row is sent as raw float32 where a server takes that.
        draw: makes rows, float32 [count, *shape].
        distinct: how many different requests there are.
        each: how many of them one connection sends, in turn.
        rate: requests per second of the open loop.
    """

    name: str
    title: str
    model_file: Path
    input: str
    shape: tuple[int, ...]
    output: str
    outputs: int
    binary: bool
    draw: Callable[[int], Floats]
    distinct: int
    each: int
    rate: float

    @property
    def model(self) -> str:
        """The name that the model is served under."""
        return self.model_file.stem


@dataclass(frozen=True)
class Cases:
    """Inputs, float32 [count, *shape], and the answers of the model, float32 [count, outputs]."""

    inputs: Floats
    expected: Floats


def make_cases(work: Work, model: Path) -> Cases:
    """Draw inputs and answer them with the frozen model, each row alone.

    Inputs whose answer is too close to that of an earlier one are left out, so that an answer given
    to the wrong request is seen.

    Args:
        work: what to make.
        model: the TorchScript file.

    Raises:
        ValueError: there are too few inputs with answers that can be told apart.
    """
    spare = 1 if work.binary else 8
    inputs = work.draw(work.distinct * spare)
    expected = answers(model, inputs)
    kept = told_apart(expected, _APART)[: work.distinct]
    if len(kept) < work.distinct:
        raise ValueError(
            f"{work.name}: only {len(kept)} of {len(inputs)} answers can be told apart; "
            f"{work.distinct} are needed"
        )
    return Cases(inputs[kept], expected[kept])


def told_apart(values: Floats, least: float) -> list[int]:
    """Return the rows, in order, that are not within `least` of a row already taken.

    The distance of two rows, of [rows, columns], is the largest difference of a column, relative
    where the numbers are above 1: as answers are compared.
    """
    kept: list[int] = []
    for number, row in enumerate(values):
        others = values[kept]
        scale = np.maximum(1, np.maximum(np.abs(others), np.abs(row)))
        if not kept or ((np.abs(others - row) / scale).max(axis=1) > least).all():
            kept.append(number)
    return kept


def answers(model: Path, inputs: Floats) -> Floats:
    """Answer rows one by one: float32 [rows, outputs]."""
    frozen: Any = torch.jit.freeze(torch.jit.load(str(model)).eval())
    with torch.inference_mode():
        rows = [frozen(torch.from_numpy(row[None])) for row in inputs]
    return np.asarray(torch.cat(rows).numpy(), dtype=np.float32)


def _features(count: int) -> Floats:
    drawn = np.random.default_rng(_SEED).normal(size=(count, 16))
    return drawn.round(4).astype(np.float32)


def _digits(count: int) -> Floats:
    """Mix two handwritten digits: of unmixed ones, most answers are the same to many decimals."""
    from models import data

    images = np.asarray(data.split().held_out.images.numpy(), dtype=np.float32)
    generator = np.random.default_rng(_SEED)
    first, second = generator.integers(len(images), size=(2, count))
    share = generator.uniform(0.3, 0.7, size=(count, 1, 1))
    mixed = images[first] * share + images[second] * (1 - share)
    return np.asarray(mixed.round(), dtype=np.float32)


def _images(count: int) -> Floats:
    drawn = np.random.default_rng(_SEED).normal(size=(count, 3, 224, 224))
    return drawn.astype(np.float32)


WORKS: Final = {
    work.name: work
    for work in (
        Work(
            "mlp",
            "tutorial MLP, 16 numbers as JSON",
            _ROOT / "models" / "activation_mlp.py",
            input="features",
            shape=(16,),
            output="scores",
            outputs=4,
            binary=False,
            draw=_features,
            distinct=1024,
            each=16,
            rate=400,
        ),
        Work(
            "digits",
            "digits CNN, 8 × 8 pixels as JSON",
            _ROOT / "models" / "digits.py",
            input="image",
            shape=(8, 8),
            output="probabilities",
            outputs=10,
            binary=False,
            draw=_digits,
            distinct=512,
            each=8,
            rate=300,
        ),
        Work(
            "resnet18",
            "ResNet-18 shape, 3 × 224 × 224 float32",
            _ROOT / "benchmarks" / "model_files" / "resnet18.py",
            input="image",
            shape=(3, 224, 224),
            output="scores",
            outputs=1000,
            binary=True,
            draw=_images,
            distinct=128,
            each=2,
            rate=8,
        ),
    )
}
"""What can be measured, by name."""
