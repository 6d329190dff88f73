"""Statistics of a layer's output, or of the gradient with respect to it."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["GradientStatistics", "LayerRecord", "LayerStatistics"]


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics over the elements of one tensor, such as a layer's output.

    The numbers are those that NumPy gives (`mean`, population `std`, `min`, `max`), NaN and
    infinities included; what is not finite is None, JSON's null. Complex outputs are measured
    by their magnitude. An empty output has None for all but the counts.

    Attributes:
        elements: how many elements there are.
        mean: their mean.
        std: their population standard deviation; 0 for a single element.
        min: the least.
        max: the greatest.
        zero_fraction: which part of them is exactly zero, 0 to 1.
        non_finite: how many of them are NaN or infinite.
    """

    elements: int
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
class GradientStatistics(LayerStatistics):
    """Statistics over the elements of a gradient.

    Attributes:
        norm: their 2-norm; None where it is not finite, and for a gradient without elements.
    """

    norm: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the norm second."""
        return {"elements": self.elements, "norm": self.norm, **super().to_json()}


S = TypeVar("S", bound=LayerStatistics)


@dataclass(frozen=True)
class LayerRecord(Generic[S]):
    """What was measured at one layer: of its output, or of the gradient with respect to it.

    Attributes:
        total: over all rows of the request.
        rows: each row by itself; empty for a request of one row, for a layer whose output has no
            row axis, and in training.
    """

    total: S
    rows: tuple[S, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the total's fields, and "rows" where there are several."""
        fields = self.total.to_json()
        if self.rows:
            fields["rows"] = [row.to_json() for row in self.rows]
        return fields
