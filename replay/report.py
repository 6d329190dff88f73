"""The report of a replay: for programs, and for people."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from formats.statistics import LayerStatistics
from replay.run import Replayed
from replay.subject import Subject

__all__ = ["VERSION", "Verdict", "document", "text"]

VERSION: Final = 1
_NAMED: Final = 8


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate passed.

    Attributes:
        differing: requests that differ.
        requests: all.
        allowed: which part of them may.
    """

    differing: int
    requests: int
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether no more differ than may."""
        return self.differing <= self.allowed * self.requests

    def __str__(self) -> str:
        found = f"{self.differing} of {self.requests} requests differ; {self.allowed:.2%} may"
        return f"{'passed' if self.passed else 'FAILED'}: {found}"


def document(
    found: Replayed, candidate: Subject, against: Subject | None, verdict: Verdict
) -> dict[str, Any]:
    """Return the report as JSON values; `null` stands for a difference that is infinite."""
    own, skipped = found.comparison, found.skipped
    layers = _layers(candidate, against)
    return {
        "format": "vitrine.replay",
        "version": VERSION,
        "candidate": _about(candidate),
        "against": None if against is None else _about(against),
        "passed": verdict.passed,
        "tolerance": own.tolerance,
        "allowed": verdict.allowed,
        "requests": {
            "replayed": own.requests,
            "differing": own.differing,
            "answered_by": dict(found.answered_by),
            "broken_lines": skipped.broken,
            "of_other_models": skipped.other_models,
        },
        "answers": {
            "compared": own.answered,
            "beyond_tolerance": own.beyond,
            "largest_absolute": own.absolute,
            "largest_relative": own.relative,
            "other_label": own.label,
            "other_argmax": own.argmax,
            "missing_outputs": sorted(own.missing),
            "added_outputs": sorted(own.added),
            "unfit": dict(own.unfit),
            "errors_appeared": dict(own.appeared),
            "errors_vanished": dict(own.vanished),
            "errors_changed": dict(own.changed),
            "worst": own.worst,
        },
        "layers": {
            key: {
                "against": None if one.old is None else one.old.to_json(),
                "candidate": None if one.new is None else one.new.to_json(),
                "dead_units": {"against": one.old_dead, "candidate": one.new_dead},
            }
            for key, one in layers.items()
        },
        "layers_appeared": _only(layers, "old") if against is not None else [],
        "layers_vanished": _only(layers, "new"),
    }


def text(found: Replayed, candidate: Subject, against: Subject | None, verdict: Verdict) -> str:
    """Return the report as lines for people."""
    own, skipped = found.comparison, found.skipped
    by = ", ".join(f"{count} by {version}" for version, count in found.answered_by.items())
    beside = "the recorded answers" if against is None else against.name
    lines = [
        f"{candidate.name} beside {beside}: {own.requests} requests, answered then {by or '-'}",
        f"  skipped: {skipped.broken} broken lines, {skipped.other_models} of other models",
        "",
        "answers",
        f"  beyond tolerance {own.tolerance:g}   {own.beyond} of {own.answered}",
        f"  largest difference     {own.absolute:.3g} absolute, {own.relative:.3g} relative",
        f"  another label          {own.label}   (another argmax: {own.argmax})",
        f"  does not fit           {_counts(own.unfit)}",
        f"  errors that appear     {_counts(own.appeared)}",
        f"  errors that vanish     {_counts(own.vanished)}",
        f"  other errors           {_counts(own.changed)}",
    ]
    if own.missing or own.added:
        missing, added = ", ".join(sorted(own.missing)), ", ".join(sorted(own.added))
        lines.append(f"  outputs                missing: {missing or '-'}; added: {added or '-'}")
    lines += [f"    {one['request_id']}  {one['how']}" for one in own.worst]
    layers = _layers(candidate, against)
    if layers:
        lines += ["", *_table(layers)]
    if against is not None and (appeared := _only(layers, "old")):
        lines.append(f"  layers that appear: {', '.join(appeared)}")
    if vanished := _only(layers, "new"):
        lines.append(f"  layers that vanish: {', '.join(vanished)}")
    return "\n".join([*lines, "", str(verdict)])


@dataclass(frozen=True)
class _Layer:
    old: LayerStatistics | None
    new: LayerStatistics | None
    old_dead: list[int] | None
    new_dead: list[int] | None


def _layers(candidate: Subject, against: Subject | None) -> dict[str, _Layer]:
    """Return both archives' layers, those that vanished last."""
    new, new_dead = candidate.layers.statistics(), _dead(candidate)
    old = against.layers.statistics() if against is not None else {}
    old_dead = _dead(against) if against is not None else {}
    return {
        key: _Layer(old.get(key), new.get(key), old_dead.get(key), new_dead.get(key))
        for key in dict.fromkeys([*new, *old])
    }


def _only(layers: Mapping[str, _Layer], lacking: str) -> list[str]:
    """Return the layers that one side lacks."""
    return [key for key, one in layers.items() if getattr(one, lacking) is None]


def _dead(subject: Subject) -> dict[str, list[int] | None]:
    return {key: one["dead"] for key, one in subject.units.report().items()}


def _table(layers: Mapping[str, _Layer]) -> Iterator[str]:
    width = max(len("layer"), *map(len, layers))
    columns = ("mean", "std", "zero", "not finite")
    yield f"{'layer':{width}}  " + "  ".join(f"{name:^19}" for name in columns) + "  dead units"
    for key, one in layers.items():
        cells = [
            _pair(one, lambda own: own.mean),
            _pair(one, lambda own: own.std),
            _pair(one, lambda own: own.zero_fraction),
            _pair(one, lambda own: own.non_finite),
        ]
        row = "  ".join(f"{cell:^19}" for cell in cells)
        yield f"{key:{width}}  {row}  {_units(one)}".rstrip()


def _pair(one: _Layer, field: Any) -> str:
    sides = [_number(field(side)) for side in (one.old, one.new) if side is not None]
    return " → ".join(sides) if one.new is not None else f"{sides[0]} →"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _units(one: _Layer) -> str:
    if one.new_dead is None:
        return ""
    if one.old_dead is None:
        return _named(one.new_dead)
    died = sorted(set(one.new_dead) - set(one.old_dead))
    woke = sorted(set(one.old_dead) - set(one.new_dead))
    news = [f"{word}: {_named(units)}" for word, units in (("died", died), ("woke", woke)) if units]
    return f"{len(one.old_dead)} → {len(one.new_dead)}" + "".join(f"; {said}" for said in news)


def _named(units: list[int]) -> str:
    shown = ", ".join(map(str, units[:_NAMED])) or "0"
    return shown + (f" and {len(units) - _NAMED} more" if len(units) > _NAMED else "")


def _counts(counts: Counter[str]) -> str:
    said = ", ".join(f"{code}: {count}" for code, count in counts.most_common())
    return f"{counts.total()}" + (f"   ({said})" if said else "")


def _about(subject: Subject) -> dict[str, Any]:
    signature = subject.model.signature
    return {
        "model": signature.model,
        "model_version": signature.model_version,
        "dead_units": subject.units.report(),
    }
