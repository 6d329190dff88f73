"""The text that Prometheus reads (its format 0.0.4)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Family", "counter", "gauge", "histogram", "sample", "write"]

_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_Labels = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A metric.

    Attributes:
        name: Its name.
        kind: counter, gauge or histogram.
        text: What it says.
        lines: Its samples.
    """

    name: str
    kind: str
    text: str
    lines: list[str] = field(default_factory=list)


def counter(name: str, text: str, labels: Sequence[str], values: Mapping[_Labels, float]) -> Family:
    """A counter, with a value for each combination of its labels' values."""
    return _simple("counter", name, text, labels, values)


def gauge(name: str, text: str, labels: Sequence[str], values: Mapping[_Labels, float]) -> Family:
    """A gauge, with a value for each combination of its labels' values."""
    return _simple("gauge", name, text, labels, values)


def histogram(
    name: str,
    text: str,
    labels: Sequence[str],
    values: Mapping[_Labels, tuple[Sequence[float], Sequence[int], float]],
) -> Family:
    """A histogram.

    Args:
        name: Its name.
        text: What it says.
        labels: Names of its labels.
        values: For each combination of their values: the upper bounds of its buckets without
            the last, infinity; how often each bucket was hit; the sum of what was observed.
    """
    found = Family(name, "histogram", text)
    for values_of, (bounds, hits, total) in sorted(values.items()):
        own = dict(zip(labels, values_of, strict=True))
        count = 0
        for bound, number in zip([*(f"{one:g}" for one in bounds), "+Inf"], hits, strict=True):
            count += number
            found.lines.append(sample(f"{name}_bucket", {**own, "le": bound}, count))
        found.lines.append(sample(f"{name}_sum", own, total))
        found.lines.append(sample(f"{name}_count", own, count))
    return found


def write(families: Iterable[Family]) -> str:
    """The text; a metric that has no samples is left out."""
    lines: list[str] = []
    for family in families:
        if family.lines:
            lines += [f"# HELP {family.name} {family.text}", f"# TYPE {family.name} {family.kind}"]
            lines += family.lines
    return "\n".join([*lines, ""])


def _simple(
    kind: str, name: str, text: str, labels: Sequence[str], values: Mapping[_Labels, float]
) -> Family:
    found = Family(name, kind, text)
    for values_of, value in sorted(values.items()):
        found.lines.append(sample(name, dict(zip(labels, values_of, strict=True)), value))
    return found


def sample(name: str, labels: Mapping[str, str], value: float) -> str:
    """Write one sample."""
    inside = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value:.16g}" if inside else f"{name} {value:.16g}"
