"""Rules on units: those of ReLU-like layers that never fire."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Final

from formats.baseline import Baseline
from formats.units import MOST_COUNTED
from observe.facts import Facts, summary
from observe.finding import Finding, Severity, listed, percent
from observe.queries import UnitReport

__all__ = ["rules"]

_EXPECTED: Final = 20
"""Firings that were to be expected; that all of them stay away has a chance of e⁻²⁰."""
_OFTEN: Final = 0.25
_NEARLY_ALWAYS: Final = 0.95
_MANY: Final = 0.5
_MOVED: Final = 0.2
_MOVED_UNITS: Final = 0.25


def rules(facts: Facts, baseline: Baseline | None) -> Iterator[Finding]:
    """Go through the layers whose units were counted often enough."""
    for report in facts.units:
        if not report.dead or len(report.dead) == report.units:
            continue  # All of them: that is a dead layer.
        known = baseline.units.get(report.key) if baseline is not None else None
        if known is None or len(known) != report.units:
            yield _unexplained(report, report.dead, "", _rates(report))
            continue
        died = [unit for unit in report.dead if known[unit] * report.rows >= _EXPECTED]
        if died:
            least, most = (percent(end([known[unit] for unit in died])) for end in (min, max))
            often = least if least == most else f"{least} to {most}"
            severity: Severity = "fault" if max(known[u] for u in died) >= _OFTEN else "warning"
            why = _other_cause(report, known, facts, baseline)
            yield Finding(
                "dead_units",
                "note" if why else severity,
                report.key,
                f"{_units(died)} of {report.key} never fired in {report.rows:,} rows, although "
                f"at export {'it' if len(died) == 1 else 'each'} fired in {often} of rows"
                f"{why or ': look at the weights that lead to it'}.",
            )
        always = [unit for unit in report.dead if not known[unit]]
        if always:
            yield _unexplained(report, always, ", and not at export either", known)


def _other_cause(
    report: UnitReport, known: Sequence[float], facts: Facts, baseline: Baseline | None
) -> str | None:
    """Say what shows that it is not these units alone that changed; None where nothing does."""
    if facts.layers and all(layer.constant for layer in facts.layers):
        return ". All requests looked alike, which may be why"
    layer = next((one for one in facts.layers if one.key == report.key), None)
    living = [(now, then) for now, then in zip(_rates(report), known, strict=False) if now]
    moved = sum(abs(now - then) > _MOVED for now, then in living)
    before = summary(baseline, report.key, "zero_fraction")
    zeros = None if layer is None else layer.zero_fraction
    # Units that die can only add zeros.
    fewer = zeros is not None and before is not None and zeros < before.mean - before.spread / 2
    if fewer or moved > _MOVED_UNITS * len(living):
        return ". Other units changed as well, so this follows from what the layer was given"
    return None


def _rates(report: UnitReport) -> list[float]:
    """Return in which part of rows each unit was active; nothing where that is not known."""
    return [count / report.rows for count in report.active or ()]


def _unexplained(
    report: UnitReport, dead: Sequence[int], besides: str, rates: Sequence[float]
) -> Finding:
    """Judge units that are dead without a baseline that says otherwise.

    `rates` is how often each unit fires, at export if that is known.
    """
    text = (
        f"{len(dead):,}{'+' if len(dead) == MOST_COUNTED else ''} of the {report.units:,} units of "
        f"{report.key} never fired in {report.rows:,} rows{besides}: {listed(dead)}."
    )
    living = [rate for rate in rates if rate]
    if len(dead) > _MANY * report.units:
        return Finding(
            "dead_units", "warning", report.key, f"{text} That is more than half of the layer."
        )
    if living and median(living) >= _NEARLY_ALWAYS:
        return Finding(
            "dead_units",
            "warning",
            report.key,
            f"{text} Its other units fire in nearly every row, so this is no chance of training: "
            "look at the weights that lead to it.",
        )
    return Finding(
        "dead_units", "note", report.key, f"{text} Training leaves some behind; they do nothing."
    )


def _units(units: Sequence[int]) -> str:
    return f"Unit {units[0]}" if len(units) == 1 else f"Units {listed(units)}"
