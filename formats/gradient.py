"""Gradient flow: what arrives at each layer on the way back, and where it vanishes or explodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from formats.statistics import GradientStatistics, LayerRecord

__all__ = [
    "EXPLODING",
    "VANISHING",
    "Gradients",
    "gradient_flow",
]

VANISHING: Final = 1e-3
EXPLODING: Final = 1e3
"""Bounds of a layer's gradient norm, as shares of the norm where the way back begins."""


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
    layers: Mapping[str, LayerRecord[GradientStatistics]]
    vanishing: tuple[str, ...] = ()
    exploding: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return `{"of", "layers", "flags": {"vanishing": [...], "exploding": [...]}}`."""
        return {
            "of": self.of,
            "layers": {key: record.to_json() for key, record in self.layers.items()},
            "flags": {"vanishing": list(self.vanishing), "exploding": list(self.exploding)},
        }


def gradient_flow(of: str, layers: Mapping[str, LayerRecord[GradientStatistics]]) -> Gradients:
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
