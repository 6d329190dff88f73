"""What the tests of drift, outliers and their metrics share."""

from collections.abc import Iterable

from torch import Tensor

from models import data
from observe.index import Index
from observe.lines import decode


def unseen() -> Tensor:
    """Return digits that neither training nor calibration has seen, float32 [150, 8, 8]."""
    return data.held_apart()[1].images


def indexed(lines: Iterable[bytes]) -> Index:
    """Return an index of lines of a log."""
    index = Index()
    index.add(decode(list(lines)))
    return index
