"""Rules on layers: not finite, dead, the same for every input, more zeros than at export."""

from collections.abc import Iterator
from typing import Final

from formats.baseline import Baseline
from observe import scale_rules
from observe.facts import RANGES, Facts, summary
from observe.finding import Finding, Severity, moment, percent, share

__all__ = ["FEW", "rules"]

FEW: Final = 20
"""Requests below which nothing is said of what layers look like usually."""

_MORE_ZEROS: Final = 0.2
_SPREADS: Final = 3.0
_NEARLY_ALL: Final = 0.99


def rules(facts: Facts, baseline: Baseline | None) -> Iterator[Finding]:
    """Go through the layers of a window."""
    yield from _non_finite(facts)
    yield from _dead(facts, baseline)
    if facts.answered < FEW:
        return
    yield from _constant(facts, baseline)
    yield from scale_rules.rules(facts, baseline)
    yield from _zeros(facts, baseline)


def _non_finite(facts: Facts) -> Iterator[Finding]:
    for one in facts.non_finite:
        times = f"in {share(one.records, facts.answered)}, first at {moment(one.since)}"
        if one.layer is None:
            yield Finding(
                "non_finite",
                "warning",
                None,
                f"NaN or infinite values came in with the inputs {times}: no layer made them.",
            )
            continue
        yield Finding(
            "non_finite",
            "fault",
            one.layer,
            f"{one.layer} made NaN or infinite values out of finite inputs {times}. Everything "
            "before it was finite: look at its weights, and at what it divides by.",
        )


def _dead(facts: Facts, baseline: Baseline | None) -> Iterator[Finding]:
    for layer in facts.layers:
        if not layer.dead:
            continue
        before = summary(baseline, layer.key, "zero_fraction")
        text = f"{layer.key} put out nothing but zeros in {share(layer.dead, layer.records)}"
        severity: Severity = "warning"
        if before is None:
            text += "."
        elif before.mean >= 1:
            text += ", and so it did at export: look at the exported weights."
        else:
            text += f"; at export, {percent(before.mean)} of its values were zero."
        if layer.dead == layer.records and layer.records >= FEW:
            # A layer that is meant to be zero has others beside it that carry the input on.
            goes_on = not all(later.constant for later in facts.layers[layer.place + 1 :])
            meant = before is not None and before.mean >= 1 and goes_on
            severity = "warning" if meant else "fault"
        elif layer.dead / layer.records < 0.01 or (
            before is not None and before.mean + _SPREADS * before.spread >= 1
        ):
            severity = "note"
        yield Finding("dead_layer", severity, layer.key, text)


def _constant(facts: Facts, baseline: Baseline | None) -> Iterator[Finding]:
    """Name the first layer that looks the same in every request."""
    measured = [layer for layer in facts.layers if layer.records >= FEW]
    constant = [layer.constant for layer in measured]
    if True not in constant:
        return
    at = constant.index(True)
    layer = measured[at]
    if layer.dead:
        return
    text = f"{layer.key} looked the same in all {layer.records:,} requests"
    if layer.saturated:
        yield Finding(
            "constant",
            "note",
            layer.key,
            f"{text}: its values are all 0 or 1, so that it is saturated, or made so.",
        )
        return
    if all(constant):
        yield Finding(
            "constant",
            "warning",
            layer.key,
            f"{text}, and so did every layer after it: either all of these requests were alike, "
            "or what comes before it ignores its input.",
        )
        return
    known = [own for name in RANGES if (own := summary(baseline, layer.key, name)) is not None]
    always = bool(known) and all(own.spread <= 1e-5 * abs(own.mean) for own in known)
    if all(constant[at:]):
        yield Finding(
            "constant",
            "fault",
            layer.key,
            f"{text}, although layers before it did not, and all after it do too: the model "
            "answers the same whatever it is asked.",
        )
    else:
        yield Finding(
            "constant",
            "note" if always else "warning",
            layer.key,
            f"{text}{', as at export' if always else ''}: it does not depend on the input.",
        )


def _zeros(facts: Facts, baseline: Baseline | None) -> Iterator[Finding]:
    for layer in facts.layers:
        zeros = layer.zero_fraction
        if zeros is None or layer.dead == layer.records:
            continue
        before = summary(baseline, layer.key, "zero_fraction")
        if before is None:
            if zeros >= _NEARLY_ALL:
                text = f"{percent(zeros)} of the values of {layer.key} are zero."
                yield Finding("zeros", "warning", layer.key, text)
        elif zeros > before.mean + max(_MORE_ZEROS, _SPREADS * before.spread):
            why = "units of it are dying, or its inputs changed"
            if layer.saturated:
                why = "all others are 1, so what leads to it is too large for it"
            yield Finding(
                "zeros",
                "warning",
                layer.key,
                f"{percent(zeros)} of the values of {layer.key} are zero, at export "
                f"{percent(before.mean)}: {why}.",
            )
