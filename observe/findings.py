"""What is wrong with a model, in words, from its activation log and its baseline."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from formats.baseline import Baseline
from formats.document import FormatError
from observe import drift_rules, layer_rules, request_rules, unit_rules, unusual_rule
from observe.drift import drift
from observe.facts import Facts, examples, gather
from observe.finding import Finding, Severity
from observe.index import Index
from observe.queries import Window

__all__ = ["Finding", "Severity", "find"]

_SEVERITIES: Final = ("fault", "warning", "note")
_KINDS: Final = ("non_finite", "dead_layer", "exploding", "overflow", "vanishing", "constant",
    "dead_units", "zeros", "gradient_exploding", "gradient_vanishing", "drift", "unusual",
    "errors", "nothing", "few_records", "no_baseline")  # fmt: skip
"""The order of what is as severe and at the same layer."""
_SPOILS: Final = frozenset(
    {"non_finite", "dead_layer", "exploding", "vanishing", "constant", "overflow"}
)
"""Faults that make all layers after them look strange."""

_SHOWS: Final[dict[str, tuple[str, str]]] = {
    "non_finite": ("r.non_finite = ?", ""),
    "dead_layer": ("l.key = ? AND v.dead", "value"),
    "gradient_exploding": ("l.key = ? AND v.flag = 2", "gradient"),
    "gradient_vanishing": ("l.key = ? AND v.flag = 1", "gradient"),
}
"""Of a kind, the condition on a request in which it shows, with the layer for its parameter."""
_CAME_IN: Final = (
    "r.non_finite IS NULL AND EXISTS "
    "(SELECT 1 FROM value v WHERE v.record = r.id AND v.total AND v.non_finite > 0)"
)


def find(index: Index, window: Window, baseline: Baseline | None) -> list[Finding]:
    """Say what is wrong in a window of the log, and where to look.

    A fault shows in the layers after it as well; what may only follow from one is a note.

    Args:
        index: to ask.
        window: which records, of which model.
        baseline: what the model's layers look like on calibration inputs, or None.

    Returns:
        The worst first, then in execution order. When nothing is wrong, a note says what was
        looked at.
    """
    facts = gather(index, window)
    if not facts.records:
        return [Finding("nothing", "note", None, "There is no record in this window.")]
    told = [
        *layer_rules.rules(facts, baseline),
        *unit_rules.rules(facts, baseline),
        *request_rules.rules(facts, lambda code: examples(index, window, "r.error = ?", [code])),
    ]
    if baseline is not None:
        told += _drift(index, window, baseline)
    # What is far off by itself and against the baseline is told once, as the graver of the two.
    by_gravity = sorted(told, key=lambda one: _SEVERITIES.index(one.severity))
    first = {(one.kind, one.layer): one for one in reversed(by_gravity)}
    once = ("exploding", "vanishing")
    found = [one for one in told if one.kind not in once or first[one.kind, one.layer] is one]
    places = {layer.key: layer.place for layer in facts.layers}
    _place_makers(facts, places)
    rare = {one.layer for one in facts.non_finite if one.records < facts.answered / 2}
    found = _without_consequences(found, places, rare)
    calm = all(one.severity == "note" for one in found)
    if calm and baseline is not None and not any(one.kind == "drift" for one in found):
        found += unusual_rule.rule(index, window, baseline, facts)
    if not any(one.severity != "note" for one in found):
        found.append(_nothing(facts, baseline))
    found += _hints(facts, baseline)
    end = len(places)
    found.sort(
        key=lambda one: (
            _SEVERITIES.index(one.severity),
            places.get(one.layer, end) if one.layer else end,
            _KINDS.index(one.kind),
        )
    )
    return [replace(one, requests=_requests(index, window, one)) for one in found]


def _drift(index: Index, window: Window, baseline: Baseline) -> list[Finding]:
    try:
        return list(drift_rules.rules(drift(index, window, baseline)))
    except FormatError as error:
        text = f"Drift cannot be told: {error}; export the model again."
        return [Finding("drift", "note", None, text)]


def _place_makers(facts: Facts, places: dict[str, Any]) -> None:
    """Put layers that made NaN, observed or not, just before the first in which it was seen."""
    for one in facts.non_finite:
        if one.layer is not None and one.layer not in places:
            seen = [layer.place for layer in facts.layers if layer.non_finite]
            places[one.layer] = min(seen) - 0.5 if seen else -1


def _without_consequences(
    found: Sequence[Finding], places: dict[str, Any], rare: set[str | None]
) -> list[Finding]:
    """Turn what may follow from a fault in a layer before it into a note that says so.

    Layers in `rare` made NaN in few requests, which explains little.
    """
    causes = [
        (places[one.layer], one.layer, one.kind)
        for one in found
        if one.layer in places
        and (one.severity == "fault" or (one.kind == "dead_units" and one.severity == "warning"))
        and not (one.kind == "non_finite" and one.layer in rare)
    ]
    return [_weighed(one, causes, places) for one in found]


def _weighed(
    one: Finding, causes: Sequence[tuple[float, str, str]], places: dict[str, Any]
) -> Finding:
    if one.layer not in places or one.severity == "note":
        return one
    here = places[one.layer]
    # Drift shows in the layer itself as well; whatever is wrong with a layer makes it drift.
    earlier = [
        (at, layer)
        for at, layer, kind in causes
        if (at <= here if one.kind == "drift" else at < here and kind in _SPOILS)
    ]
    if not earlier:
        return one
    _, layer = min(earlier)
    where = "this layer" if layer == one.layer else layer
    text = f"{one.text} It may follow from the fault at {where}."
    return replace(one, severity="note", text=text)


def _nothing(facts: Facts, baseline: Baseline | None) -> Finding:
    keys = [layer.key for layer in facts.layers]
    looked = f"{facts.records:,} requests, {len(keys)} layers"
    if keys:
        looked += f" ({keys[0]} to {keys[-1]})" if len(keys) > 1 else f" ({keys[0]})"
    counted = [report for report in facts.units if report.dead is not None]
    if counted:
        rows = max(report.rows for report in counted)
        looked += f", the units of {len(counted)} layers in {rows:,} rows"
    if baseline is not None:
        looked += f", compared with {baseline.rows:,} rows at export"
    return Finding("nothing", "note", None, f"Nothing wrong was found in {looked}.")


def _hints(facts: Facts, baseline: Baseline | None) -> Iterator[Finding]:
    if facts.answered < layer_rules.FEW:
        yield Finding(
            "few_records",
            "note",
            None,
            f"Only {facts.answered} requests were answered: what layers usually look like can be "
            f"told from {layer_rules.FEW} on.",
        )
    if baseline is None:
        yield Finding(
            "no_baseline",
            "note",
            None,
            "There is no baseline to compare with: give the model's archive with --baseline "
            "FILE.mar, or the folder it is in with --model-store.",
        )


def _requests(index: Index, window: Window, one: Finding) -> tuple[str, ...]:
    if one.requests:
        return one.requests
    if one.kind == "non_finite" and one.layer is None:
        return examples(index, window, _CAME_IN)
    if one.kind in _SHOWS:
        condition, table = _SHOWS[one.kind]
        return examples(index, window, condition, [one.layer], table)
    if one.layer is None:
        return ()
    return examples(index, window, "l.key = ?", [one.layer], "value")
