"""How much a model computes, as model-config.yaml says it to who serves it."""

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["LARGE", "OPERATIONS", "is_large"]

OPERATIONS: Final = "operations_per_row"
"""Under `vitrine` in model-config.yaml: floating-point operations of one row, counted at export."""

LARGE: Final = 200_000_000
"""Operations of a row that take a core about 2 ms. From there on what serving adds is little, and
cores are what bounds a server."""


def is_large(config: Mapping[str, Any]) -> bool:
    """Tell whether a model-config.yaml is that of a model that computes much."""
    own = config.get("vitrine")
    operations = own.get(OPERATIONS) if isinstance(own, Mapping) else None
    return isinstance(operations, int) and operations >= LARGE
