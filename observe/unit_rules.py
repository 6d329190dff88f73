"""Rules on units: those of ReLU-like layers that never fire."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Final

from formats.baseline import Baseline
from formats.units import MOST_COUNTED
from observe.facts import Facts
from observe.finding import Finding, listed, percent
from observe.queries import UnitReport

__all__ = ["rules"]

_EXPECTED: Final = 20
"""Firings that were to be expected; that all of them stay away has a chance of e⁻²⁰."""
_OFTEN: Final = 0.25
_NEARLY_ALWAYS: Final = 0.95
_MANY: Final = 0.5


def rules(facts: Facts, baseline: Baseline | None) -> Iterator[Finding]:
    """Go through the layers whose units were counted often enough."""
    for report in facts.units:
        if not report.dead or len(report.dead) == report.units:
            continue  # All of them: that is a dead layer.
        known = baseline.units.get(report.key) if baseline is not None else None
        if known is None or len(known) != report.units:
            yield _unexplained(report, report.dead, "")
            continue
        died = [unit for unit in report.dead if known[unit] * report.rows >= _EXPECTED]
        if died:
            least, most = (percent(end([known[unit] for unit in died])) for end in (min, max))
            often = least if least == most else f"{least} to {most}"
            yield Finding(
                "dead_units",
                "fault" if max(known[unit] for unit in died) >= _OFTEN else "warning",
                report.key,
                f"{_units(died)} of {report.key} never fired in {report.rows:,} rows, although "
                f"at export {'it' if len(died) == 1 else 'each'} fired in {often} of rows: look "
                "at the weights that lead to it.",
            )
        always = [unit for unit in report.dead if not known[unit]]
        if always:
            yield _unexplained(report, always, ", and not at export either")


def _unexplained(report: UnitReport, dead: Sequence[int], besides: str) -> Finding:
    """Judge units that are dead without a baseline that says otherwise."""
    text = (
        f"{len(dead):,}{'+' if len(dead) == MOST_COUNTED else ''} of the {report.units:,} units of "
        f"{report.key} never fired in {report.rows:,} rows{besides}: {listed(dead)}."
    )
    living = [count / report.rows for count in report.active or () if count]
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
