"""What Prometheus scrapes of an activation log: drift, outliers, and how far it has been read."""

from collections.abc import Mapping
from typing import Final

from observe.baselines import Baselines
from observe.drift import drift
from observe.index import Index
from observe.latest import current
from observe.outliers import count_unusual
from observe.reader import State

__all__ = ["FAMILIES", "LATEST", "exposition"]

LATEST: Final = 500
"""How many of a model's latest requests are looked at."""
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

FAMILIES: Final = {
    "vitrine_drift_distance": (
        "gauge",
        "Kolmogorov-Smirnov distance of the latest rows from the baseline, 0 to 1",
    ),
    "vitrine_drift_threshold": ("gauge", "What the distance has to exceed for an alarm"),
    "vitrine_drift_alarm": ("gauge", "Whether some layer has drifted, 0 or 1"),
    "vitrine_outlier_requests": (
        "gauge",
        f"Of the latest {LATEST} requests, those that are unlike the calibration inputs",
    ),
    "vitrine_observe_records": ("gauge", "Records of the activation log that are kept"),
    "vitrine_observe_skipped_lines_total": ("counter", "Lines that were no activation record"),
    "vitrine_observe_read_bytes": ("gauge", "Bytes of the log that have been read"),
    "vitrine_observe_found_bytes": ("gauge", "Bytes of the log that were found"),
}
"""By name: its kind, and what it says."""


def exposition(index: Index, state: State, baselines: Baselines) -> str:
    """Return metrics of a log in Prometheus's text format (0.0.4).

    Versions of a model that have no record in the log's last day are left out, and so are drift
    and outliers where there is no baseline.

    Args:
        index: of the log.
        state: how far it has been read.
        baselines: of its models.

    Raises:
        FormatError: a baseline is damaged.
    """
    lines: dict[str, list[str]] = {name: [] for name in FAMILIES}

    def add(name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        inside = ",".join(
            f'{key}="{text.translate(_ESCAPES)}"' for key, text in (labels or {}).items()
        )
        lines[name].append(f"{name}{{{inside}}} {value:.16g}" if inside else f"{name} {value:.16g}")

    for window in current(index):
        assert window.version is not None
        baseline = baselines.find(window.model, window.version)
        if baseline is None:
            continue
        owner = {"model": window.model, "version": window.version}
        layers = drift(index, window, baseline, LATEST)
        for layer in layers:
            for each in layer.distances:
                labels = {**owner, "layer": layer.key, "statistic": each.statistic}
                add("vitrine_drift_distance", each.distance, labels)
                add("vitrine_drift_threshold", each.threshold, labels)
        if layers:
            add("vitrine_drift_alarm", any(layer.alarm for layer in layers), owner)
        if (unusual := count_unusual(index, window, baseline, LATEST)) is not None:
            add("vitrine_outlier_requests", unusual, owner)
    add("vitrine_observe_records", state.records)
    for reason, number in state.skipped.items():
        add("vitrine_observe_skipped_lines_total", number, {"reason": reason})
    add("vitrine_observe_read_bytes", state.read_bytes)
    add("vitrine_observe_found_bytes", state.found_bytes)
    text = []
    for name, (kind, about) in FAMILIES.items():
        if lines[name]:
            text += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *lines[name]]
    return "\n".join([*text, ""])
