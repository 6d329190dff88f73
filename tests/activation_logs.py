"""Activation logs for tests: records like those of a small network, with faults where wanted."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from export.baseline import summarise
from formats.activation import ActivationRecord, Activations
from formats.baseline import STATISTICS, Baseline
from formats.gradient import gradient_flow
from formats.statistics import GradientStatistics, LayerRecord, LayerStatistics
from formats.units import LayerUnits, UnitsRecord

LAYERS = ("stem", "block.0.relu", "block.1.relu", "block.2.relu", "head")
START = 1_795_862_400_000
"""2026-11-28 10:40:00 UTC in milliseconds."""


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a layer from a record on.

    Attributes:
        kind: "nan" (passed on to all layers behind), "dead", "exploding" or "shifted".
        layer: where.
        first: the first record that has it.
        last: the first that no longer has it; None for the end.
    """

    kind: Literal["nan", "dead", "exploding", "shifted"]
    layer: str
    first: int = 0
    last: int | None = None

    def at(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number < self.last)


def records(
    count: int,
    *,
    layers: Sequence[str] = LAYERS,
    faults: Sequence[Fault] = (),
    model: str = "digits",
    version: str = "1.0",
    start: int = START,
    step: int = 100,
    rows: int = 1,
    errors: Iterable[int] = (),
    gradients: Iterable[int] = (),
    seed: int = 0,
) -> Iterator[ActivationRecord]:
    """Make records, one each `step` milliseconds.

    Args:
        count: of records.
        layers: their keys, in execution order.
        faults: what is wrong.
        model: its name.
        version: its version.
        start: milliseconds since 1970.
        step: milliseconds.
        rows: of each request.
        errors: the numbers of those that ended in an error.
        gradients: the numbers of those that have gradient flow.
        seed: of the numbers.
    """
    random = np.random.default_rng(seed)
    ended, explained = set(errors), set(gradients)
    for number in range(count):
        activations = (
            None if number in ended else _activations(random, layers, faults, number, rows)
        )
        bad = activations is not None and activations.non_finite is not None
        yield ActivationRecord(
            time=rfc3339(start + number * step),
            model=model,
            model_version=version,
            request_id=f"{version}-{number:08}-{random.integers(1 << 32):08x}",
            traceparent=None,
            correlation_id=f"client-{number}" if number % 10 == 0 else None,
            reason="error" if number in ended else "non_finite" if bad else "sampled",
            rows=rows,
            activations=activations,
            error="invalid_input" if number in ended else None,
            gradients=_gradients(random, layers) if number in explained else None,
        )


def lines(made: Iterable[ActivationRecord]) -> Iterator[str]:
    """Return the lines of a log."""
    for record in made:
        yield json.dumps(record.to_json()) + "\n"


def write(path: Path, made: Iterable[ActivationRecord]) -> Path:
    """Write a log, or more of it, and return its path."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines(made))
    return path


def units(layers: Mapping[str, Sequence[int]], *, rows: int = 1000, model: str = "digits") -> str:
    """Return a line of how often units were active: by layer, 0 for one that never was."""
    counted = {
        key: LayerUnits(
            rows,
            len(active),
            sum(active) / rows / len(active),
            tuple(number for number, times in enumerate(active) if not times),
            tuple(active),
        )
        for key, active in layers.items()
    }
    record = UnitsRecord(rfc3339(START + 1000), model, "1.0", "worker-1", counted)
    return json.dumps(record.to_json()) + "\n"


def baseline(layers: Sequence[str] = LAYERS, rows: int = 800, seed: int = 1) -> Baseline:
    """Return the baseline of the network that `records` are of."""
    random = np.random.default_rng(seed)
    return summarise(
        "calibration",
        [
            {
                key: {name: getattr(made, name) for name in STATISTICS}
                for key, made in (
                    (key, _statistics(random, place)) for place, key in enumerate(layers)
                )
            }
            for _ in range(rows)
        ],
    )


def rfc3339(time: int) -> str:
    """Return milliseconds since 1970 as a record has them."""
    found = datetime.fromtimestamp(time // 1000, UTC)
    return f"{found:%Y-%m-%dT%H:%M:%S}.{time % 1000:03}Z"


def _statistics(random: np.random.Generator, place: int) -> LayerStatistics:
    mean = 1.0 + 0.5 * place + 0.1 * random.standard_normal()
    std = 0.5 + 0.05 * abs(random.standard_normal())
    zero = float(np.clip(0.4 + 0.05 * random.standard_normal(), 0, 1))
    return LayerStatistics(64, mean, std, 0.0, mean + 3 * std + random.random(), zero, 0)


_NAN = LayerStatistics(64, None, None, None, None, 0.0, 64)
_DEAD = LayerStatistics(64, 0.0, 0.0, 0.0, 0.0, 1.0, 0)


def _activations(
    random: np.random.Generator,
    layers: Sequence[str],
    faults: Sequence[Fault],
    number: int,
    rows: int,
) -> Activations:
    found: dict[str, LayerRecord[LayerStatistics]] = {}
    producer = None
    dead = []
    for place, key in enumerate(layers):
        wrong = {fault.kind for fault in faults if fault.layer == key and fault.at(number)}
        if "nan" in wrong and producer is None:
            producer = key
        each = [_faulty(_statistics(random, place), wrong, producer) for _ in range(rows)]
        if each[0] == _DEAD:
            dead.append(key)
        found[key] = LayerRecord(_together(each), tuple(each) if rows > 1 else ())
    return Activations(found, producer, tuple(dead))


def _faulty(made: LayerStatistics, wrong: set[str], producer: str | None) -> LayerStatistics:
    if producer is not None:
        return _NAN
    if "dead" in wrong:
        return _DEAD
    mean, std, greatest = made.mean, made.std, made.max
    assert mean is not None
    assert std is not None
    assert greatest is not None
    if "exploding" in wrong:
        return replace(made, mean=mean * 1e4, std=std * 1e4, max=greatest * 1e4)
    if "shifted" in wrong:
        return replace(made, mean=mean + 0.25, max=greatest + 0.25)
    return made


def _together(rows: Sequence[LayerStatistics]) -> LayerStatistics:
    if len(rows) == 1:
        return rows[0]
    fields: Mapping[str, list[float]] = {
        name: [getattr(row, name) for row in rows if getattr(row, name) is not None]
        for name in STATISTICS
    }
    mean = float(np.mean(fields["mean"])) if fields["mean"] else None
    return LayerStatistics(
        sum(row.elements for row in rows),
        mean,
        float(np.mean(fields["std"])) if fields["std"] else None,
        min(fields["min"], default=None),
        max(fields["max"], default=None),
        float(np.mean(fields["zero_fraction"])),
        sum(row.non_finite for row in rows),
    )


def _gradients(random: np.random.Generator, layers: Sequence[str]):
    flow = {}
    for place, key in enumerate(layers):
        norm = 10.0 ** (place - len(layers) + 1) * (1 + 0.1 * random.random())
        made = GradientStatistics(64, 0.0, norm / 8, -norm / 3, norm / 3, 0.0, 0, norm)
        flow[key] = LayerRecord(made)
    return gradient_flow("probabilities", flow)
