"""Values for the metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from handlers.line_log import Counts

__all__ = ["LogCounters", "Sample"]


@dataclass(frozen=True)
class Sample:
    """One value for the metrics.

    Attributes:
        name: e.g. "vitrine_activation_mean".
        value: the value of a gauge, or what a counter grew by.
        labels: e.g. {"Layer": "block.relu"}.
        counter: whether it only ever grows.
    """

    name: str
    value: float
    labels: Mapping[str, str]
    counter: bool


class LogCounters:
    """What became of a log's lines: `NAME_written` and `NAME_dropped`.

    Args:
        name: of the counters, before that.
        counts: of the log.
    """

    def __init__(self, name: str, counts: Callable[[], Counts]) -> None:
        self._name = name
        self._counts = counts
        self._reported = (0, 0)

    def take_samples(self) -> list[Sample]:
        """Return by how much they grew since the last call, where they did."""
        counts = self._counts()
        current = (counts.written, counts.total_dropped)
        grown = [
            Sample(f"{self._name}_{what}", new - old, {}, counter=True)
            for what, new, old in zip(("written", "dropped"), current, self._reported, strict=True)
            if new > old
        ]
        self._reported = current
        return grown
