"""A finding: something that a person should know of a model, in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

__all__ = ["Finding", "Severity", "listed", "moment", "number", "percent", "share"]

Severity = Literal["fault", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """What a rule says; docs/findings.md has all of them.

    Attributes:
        kind: the rule.
        severity: "fault": the model does not work as it was built to; "warning": look at it;
            "note": good to know.
        layer: the layer to look at, or None.
        text: one or two sentences.
        requests: ids of some requests in which it shows, the latest first.
    """

    kind: str
    severity: Severity
    layer: str | None
    text: str
    requests: tuple[str, ...] = ()


def share(part: int, whole: int) -> str:
    """Say how many requests of all those measured."""
    if part >= whole:
        return f"all {whole:,} requests" if whole != 1 else "the only request"
    return f"{part:,} of {whole:,} requests ({percent(part / whole)})"


def percent(fraction: float) -> str:
    """Write a fraction of 1."""
    return f"{100 * fraction:.{0 if fraction >= 0.01 or not fraction else 2}f} %"


def moment(time: int) -> str:
    """Write a time, milliseconds since 1970."""
    return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def number(value: float) -> str:
    """Write a number with three digits."""
    return f"{value:.3g}"


def listed(items: Sequence[object], most: int = 8) -> str:
    """Write some items and how many there are besides."""
    text = ", ".join(str(item) for item in items[:most])
    return text if len(items) <= most else f"{text} and {len(items) - most:,} more"
