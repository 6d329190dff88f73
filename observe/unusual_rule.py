"""The rule on unusual requests: more of them than chance explains, though most are as they were."""

import math
from collections.abc import Iterator
from typing import Final

from formats.baseline import Baseline
from observe.facts import Facts
from observe.finding import Finding, percent, share
from observe.index import Index
from observe.outliers import FALSE_ALARMS, LATEST, unusual
from observe.queries import Window

__all__ = ["rule"]

_USUAL: Final = 2 * FALSE_ALARMS
_SPREADS: Final = 5.0
_FEW: Final = 2
_EXAMPLES: Final = 3


def rule(index: Index, window: Window, baseline: Baseline, facts: Facts) -> Iterator[Finding]:
    """Say when a part of the requests is unlike the others.

    One request in a hundred is unusual by chance, and calibration inputs are never quite what
    requests are; so of n requests, 0.02 n are taken for usual, and 5 √(0.02 n) + 2 on top of that.
    """
    looked_at = min(facts.answered - facts.steps, LATEST)
    if looked_at <= 0:
        return
    found = unusual(index, window, baseline, looked_at)
    expected = _USUAL * looked_at
    if len(found) <= expected + _SPREADS * math.sqrt(expected) + _FEW:
        return
    yield Finding(
        "unusual",
        "warning",
        None,
        f"{share(len(found), looked_at).replace('of ', 'of the latest ', 1)} are unlike the "
        f"calibration inputs, where {percent(FALSE_ALARMS)} would be usual, and the others are "
        "not: somebody may send something else.",
        tuple(row.request_id for row, _ in found[:_EXAMPLES]),
    )
