"""What one measurement found, and its summary over rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["PERCENTILES", "Answered", "Closed", "Measured", "Opened", "percentiles"]

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Answered:
    """What became of the requests of a load.

    Attributes:
        per_second: right answers per second.
        latency_ms: percentiles of the time to the answer, by "p50", "p90", "p99".
        right, wrong, refused, broken: answers as expected, other answers with status 200, answers
            with another status, and connections that failed.
        sample: the beginning of one answer that was not right.
        server_cores, client_cores: processors that the server and the load generator kept busy.
        other_cores: processors that everything else on the machine, or its hypervisor, took away.
    """

    per_second: float
    latency_ms: dict[str, float]
    right: int
    wrong: int
    refused: int
    broken: int
    sample: str
    server_cores: float
    client_cores: float
    other_cores: float

    @property
    def failures(self) -> int:
        """Requests that did not get the right answer."""
        return self.wrong + self.refused + self.broken


@dataclass(frozen=True)
class Closed(Answered):
    """A load of a number of connections, each of which asks again as soon as it has its answer.

    Latency counts from the request.
    """


@dataclass(frozen=True)
class Opened(Answered):
    """A load of requests at times of their own, whether earlier ones were answered or not.

    Latency counts from the scheduled time. Requests without an answer when the sender stopped
    waiting are among the broken.

    Attributes:
        rate: requests per second that were scheduled.
        lag_ms: percentiles of how late the sender itself was while it had a connection free.
    """

    rate: float
    lag_ms: dict[str, float]


@dataclass
class Measured:
    """A point of `scripts/benchmark growth`.

    Attributes:
        series: the line that it belongs to.
        at: its place on the axis.
        rounds: what was found, one a round.
    """

    series: str
    at: str
    rounds: list[Closed] = field(default_factory=list)


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return the percentiles of `PERCENTILES` by "p50" and so on; NaN for no values."""
    names = [f"p{percent}" for percent in PERCENTILES]
    if not len(milliseconds):
        return dict.fromkeys(names, float("nan"))
    return dict(zip(names, np.percentile(milliseconds, PERCENTILES).tolist(), strict=True))
