"""What Vitrine's cost is measured against in `scripts/benchmark growth`."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.serving.forms import Form
from benchmarks.serving.vitrine import Variant
from benchmarks.serving.work import WORKS, Cases, Floats, Work, answers

__all__ = ["AXES", "Axis", "Case", "Point"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_DISTINCT: Final = 64
_SEED: Final = 0
_JSON: Final = {"Content-Type": "application/json"}
_NPY: Final = {"Content-Type": "application/x-npy", "Accept": "application/octet-stream"}
_ONE_LAYER: Final = "stats; layers=features.1"
_ONE_LAYER_OF_MLP: Final = "stats; layers=block.1"
_ALL_LAYERS: Final = "stats; layers=*"


@dataclass(frozen=True)
class Case:
    """Requests and their answers.

    Attributes:
        form: the requests.
        expected: float32 [requests, numbers of an answer].
    """

    form: Form
    expected: Floats


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        series: the line that it belongs to.
        at: its place on the axis.
        work: whose model is served.
        variant: how it is served.
        make: makes the requests from the model file and single rows with their answers.
        connections: of the closed loop.
    """

    series: str
    at: str
    work: Work
    variant: Variant
    make: Callable[[Path, Cases], Case]
    connections: int


@dataclass(frozen=True)
class Axis:
    """Something that grows.

    Attributes:
        name: as on the command line.
        title: as in the table.
        points: what is measured.
    """

    name: str
    title: str
    points: tuple[Point, ...]


_MLP: Final = replace(WORKS["mlp"], distinct=1024)
_DIGITS: Final = replace(WORKS["digits"], distinct=640, each=10)
_PLAIN: Final = Variant("vitrine")


def _draw_images(count: int, side: int = 8) -> Floats:
    drawn = np.random.default_rng(_SEED).normal(size=(count, 3, side, side)) + 1
    # Means of many numbers are all alike; these tell one image from another.
    tints = np.random.default_rng(_SEED + 1).uniform(-5, 5, size=(count, 3, 1, 1))
    return np.asarray((drawn + tints).round(4), dtype=np.float32)


_IMAGES: Final = Work(
    "images",
    "means of an image's channels",
    _ROOT / "benchmarks" / "model_files" / "any_size_means.py",
    input="image",
    shape=(3, 8, 8),
    output="means",
    outputs=3,
    binary=False,
    draw=_draw_images,
    distinct=_DISTINCT,
    each=2,
    rate=0,
)


def _one_row(work: Work) -> Callable[[Path, Cases], Case]:
    return lambda model, cases: Case(_as_json(work, [*cases.inputs]), cases.expected)


def _many_rows(
    work: Work, rows: int, encode: Callable[[Work, list[Floats]], Form]
) -> Callable[[Path, Cases], Case]:
    def make(model: Path, cases: Cases) -> Case:
        # Requests start at different rows: no two are the same.
        count = len(cases.inputs)
        chosen = [(np.arange(rows) + start) % count for start in range(_DISTINCT)]
        requests = [cases.inputs[own] for own in chosen]
        expected = np.stack([cases.expected[own].ravel() for own in chosen])
        return Case(encode(work, requests), expected)

    return make


def _sized(
    side: int, encode: Callable[[Work, list[Floats]], Form]
) -> Callable[[Path, Cases], Case]:
    def make(model: Path, cases: Cases) -> Case:
        images = _draw_images(16, side)
        return Case(encode(_IMAGES, [*images[:, None]]), answers(model, images))

    return make


def _observed(work: Work, share: float, wanted: str) -> Callable[[Path, Cases], Case]:
    """Ask for activations in a share of the requests, evenly spread."""

    def make(model: Path, cases: Cases) -> Case:
        form = _as_json(work, [*cases.inputs])
        asked = [int((n + 1) * share) > int(n * share) for n in range(len(form.bodies))]
        headers = [{"X-Activations": wanted} if one else {} for one in asked]
        return Case(replace(form, own_headers=headers), cases.expected)

    return make


def _as_json(work: Work, requests: list[Floats]) -> Form:
    bodies = [
        json.dumps({"inputs": one.astype(np.float64).round(4).tolist()}, separators=(",", ":"))
        for one in requests
    ]
    path, marker = f"/predictions/{work.model}", f'"{work.output}":'
    return Form(path, dict(_JSON), [body.encode() for body in bodies], marker)


def _as_npy(work: Work, requests: list[Floats]) -> Form:
    bodies = []
    for one in requests:
        file = io.BytesIO()
        np.save(file, one)
        bodies.append(file.getvalue())
    return Form(f"/predictions/{work.model}", dict(_NPY), bodies, None)


def _bytes(count: int) -> str:
    return f"{count / 1024:g} KiB" if count < 1 << 20 else f"{count / (1 << 20):g} MiB"


_FORMS: Final = {"JSON": _as_json, ".npy": _as_npy}

AXES: Final = {
    axis.name: axis
    for axis in (
        Axis(
            "connections",
            "connections, tutorial MLP, one row as JSON",
            tuple(
                Point(variant.name, str(count), _MLP, variant, _one_row(_MLP), count)
                for variant in (_PLAIN, Variant("vitrine-no-front", ("--no-front",)))
                for count in (1, 2, 4, 8, 16, 32, 64)
            ),
        ),
        Axis(
            "rows",
            "rows in a request, tutorial MLP, 8 connections",
            tuple(
                Point(name, str(rows), _MLP, _PLAIN, _many_rows(_MLP, rows, encode), 8)
                for name, encode in _FORMS.items()
                for rows in (1, 4, 16, 64, 256)
            ),
        ),
        Axis(
            "bytes",
            "an image as float32, next to no model, 4 connections",
            tuple(
                Point(name, _bytes(12 * side**2), _IMAGES, _PLAIN, _sized(side, encode), 4)
                for name, encode in _FORMS.items()
                for side in (8, 32, 128, 256, 512)
            ),
        ),
        Axis(
            "activations",
            "requests that ask for activations, 32 connections",
            tuple(
                Point(work.name, at, work, _PLAIN, _observed(work, share, wanted), 32)
                for work, one in ((_MLP, _ONE_LAYER_OF_MLP), (_DIGITS, _ONE_LAYER))
                for at, share, wanted in (
                    ("none", 0.0, ""),
                    ("10 %, all layers", 0.1, _ALL_LAYERS),
                    ("100 %, one layer", 1.0, one),
                    ("100 %, all layers", 1.0, _ALL_LAYERS),
                )
            ),
        ),
        Axis(
            "workers",
            "worker processes, 32 connections",
            tuple(
                Point(work.name, str(count), work, variant, _one_row(work), 32)
                for work in (_MLP, _DIGITS)
                for count in (1, 2, 4)
                for variant in (
                    Variant(f"{count} workers", config={"default_workers_per_model": str(count)}),
                )
            ),
        ),
    )
}
"""What can be measured, by name."""
