"""Gradient flow: what arrives at each layer on the way back, and where it vanishes or explodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "EXPLODING",
    "VANISHING",
    "GradientRecord",
    "GradientStatistics",
    "Gradients",
    "gradient_flow",
]

VANISHING: Final = 1e-3
EXPLODING: Final = 1e3
"""Bounds of a layer's gradient norm, as shares of the norm where the way back begins."""


@dataclass(frozen=True)
class GradientStatistics:
    """Statistics over the elements of the gradient with respect to one layer's output.

    What is not finite is None, JSON's null; the gradient of an empty output has None for all but
    the counts. Complex gradients are measured by their magnitude.

    Attributes:
        elements: how many elements there are.
        norm: their 2-norm.
        mean: their mean.
        std: their population standard deviation.
        min: the least.
        max: the greatest.
        zero_fraction: which part of them is exactly zero, 0 to 1.
        non_finite: how many of them are NaN or infinite.
    """

    elements: int
    norm: float | None
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    zero_fraction: float | None
    non_finite: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields in their order."""
        return dict(vars(self))


@dataclass(frozen=True)
class GradientRecord:
    """The gradient at one layer.

    Attributes:
        total: over all rows.
        rows: each row by itself; empty where there is one row or no row axis, and in training.
    """

    total: GradientStatistics
    rows: tuple[GradientStatistics, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the total's fields, and "rows" where there are several."""
        fields = self.total.to_json()
        if self.rows:
            fields["rows"] = [row.to_json() for row in self.rows]
        return fields


@dataclass(frozen=True)
class Gradients:
    """The gradients at the layers that one backward pass came through.

    Attributes:
        of: what was differentiated: an output's name, or "loss".
        layers: by activation key (see `formats.activation.Activations`), in the order of the
            forward pass. A layer that the differentiated value does not depend on is absent.
        vanishing: keys of layers whose gradient is lost on the way; see `gradient_flow`.
        exploding: keys of layers whose gradient grew on the way, or is not finite.
    """

    of: str
    layers: Mapping[str, GradientRecord]
    vanishing: tuple[str, ...] = ()
    exploding: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return `{"of", "layers", "flags": {"vanishing": [...], "exploding": [...]}}`."""
        return {
            "of": self.of,
            "layers": {key: record.to_json() for key, record in self.layers.items()},
            "flags": {"vanishing": list(self.vanishing), "exploding": list(self.exploding)},
        }


def gradient_flow(of: str, layers: Mapping[str, GradientRecord]) -> Gradients:
    """Compare each layer's gradient norm with that of the layer where the way back begins.

    That is the last one in the order of the forward pass with a finite norm above zero. Less than
    `VANISHING` times its norm is vanishing, more than `EXPLODING` times it or a value that is not
    finite is exploding. What is compared is the norm over all rows.
    """
    norms = {key: record.total.norm for key, record in layers.items()}
    start = next((norm for norm in reversed(norms.values()) if norm), None)
    vanishing = []
    exploding = []
    for key, record in layers.items():
        norm = record.total.norm
        if record.total.non_finite or (norm is None and record.total.elements):
            exploding.append(key)
        elif norm is not None and (start is None or norm < VANISHING * start):
            vanishing.append(key)
        elif norm is not None and start is not None and norm > EXPLODING * start:
            exploding.append(key)
    return Gradients(of, layers, tuple(vanishing), tuple(exploding))
