"""Rules on how large layers are: exploding, close to overflow, vanishing, other than at export."""

from collections.abc import Iterator
from typing import Final

from formats.baseline import Baseline
from observe.facts import Facts, LayerFacts, summary
from observe.finding import Finding, Severity, number

__all__ = ["rules"]

_JUMP: Final = 1e3
_LARGE: Final = 1e3
_HUGE: Final = 1e6
_HIDDEN_JUMP: Final = 1e2
_STEP: Final = 3.0
_CLIMB: Final = 1e4
_COLLAPSE: Final = 1e-6
_SMALL: Final = 1e-3
_SPREADS: Final = 3.0
_OTHER: Final = 8.0
_FAR_OTHER: Final = 25.0
_LIMITS: Final[tuple[tuple[float, Severity, str], ...]] = (
    (1e37, "fault", "close to where float32 overflows (3.4e38)"),
    (3e4, "note", "about where float16 overflows (65,504); bfloat16 and float32 hold it"),
)


def rules(facts: Facts, baseline: Baseline | None) -> Iterator[Finding]:
    """Go through the layers of a window, each compared with the one before it and with itself."""
    yield from list(_exploding(facts)) or _too_large(facts)
    yield from _overflow(facts)
    yield from _vanishing(facts)
    if baseline is not None:
        yield from _scale(facts, baseline)


def _exploding(facts: Facts) -> Iterator[Finding]:
    """Name the first layer that is far larger than the one before it, or where a climb begins."""
    before: LayerFacts | None = None
    climb: list[LayerFacts] = []
    for layer in facts.layers:
        size = layer.usual_size
        if size is None:
            before, climb = None, []
            continue
        last = before.usual_size if before is not None else None
        if last is None and size > _HUGE and not layer.place:
            yield Finding(
                "exploding",
                "fault",
                layer.key,
                f"{layer.key}, the first observed layer, usually reaches {number(size)}: its "
                "weights, or the inputs, are far too large.",
            )
            return
        if before is not None and last is not None and size > _LARGE and size > _JUMP * last:
            yield Finding(
                "exploding",
                "fault",
                layer.key,
                f"{layer.key} usually reaches {number(size)}, {number(size / last)} times "
                f"{before.key} before it ({number(last)}): look at its weights.",
            )
            return
        climb = [*climb, layer] if last is not None and size >= _STEP * last else [layer]
        first = climb[0].usual_size
        if len(climb) > 2 and first is not None and size > max(_LARGE, _CLIMB * first):
            yield Finding(
                "exploding",
                "fault",
                climb[1].key,
                f"Activations grow with each layer from {climb[0].key} ({number(first)}) to "
                f"{layer.key} ({number(size)}): {number((size / first) ** (1 / (len(climb) - 1)))} "
                "times a layer.",
            )
            return
        before = layer


def _too_large(facts: Facts) -> Iterator[Finding]:
    """Name a layer that is too large for those after it, though no answer need be."""
    last: float | None = None
    for layer in facts.layers[:-1]:
        size = layer.usual_size
        if size is not None and last is not None and size > _HIDDEN_JUMP * max(1.0, last):
            yield Finding(
                "exploding",
                "warning",
                layer.key,
                f"{layer.key} usually reaches {number(size)}, {number(size / last)} times the "
                f"layer before it ({number(last)}): look at its weights.",
            )
            return
        last = size
    large = next((one for one in facts.layers if (one.usual_size or 0.0) > _LARGE), None)
    if large is None or large.usual_size is None:
        return
    for layer in facts.layers[large.place + 1 :]:
        if layer.saturated:
            yield Finding(
                "exploding",
                "warning",
                large.key,
                f"{large.key} usually reaches {number(large.usual_size)}, and {layer.key} after it "
                "puts out nothing but 0 and 1: look at the weights up to it, and at the inputs.",
            )
            return


def _overflow(facts: Facts) -> Iterator[Finding]:
    for limit, severity, text in _LIMITS:
        for layer in facts.layers:
            if layer.largest is not None and layer.largest > limit:
                reach = f"{layer.key} reaches {number(layer.largest)}, {text}."
                yield Finding("overflow", severity, layer.key, reach)
                return


def _vanishing(facts: Facts) -> Iterator[Finding]:
    before: LayerFacts | None = None
    for layer in facts.layers:
        std = layer.usual_std
        last = before.usual_std if before is not None else None
        low = min(_SMALL, _COLLAPSE * last) if last is not None else 0.0
        if before is not None and std is not None and last is not None and std < low:
            yield Finding(
                "vanishing",
                "fault",
                layer.key,
                f"{layer.key} hardly varies: its standard deviation is usually {number(std)}, "
                f"that of {before.key} before it {number(last)}.",
            )
            return
        before = layer


def _scale(facts: Facts, baseline: Baseline) -> Iterator[Finding]:
    """Name the first layer that is far larger, or smaller, than at export."""
    for layer in facts.layers:
        before = summary(baseline, layer.key, "std")
        if before is None or before.mean <= 0 or layer.std is None or not layer.std:
            continue
        factor = layer.std / before.mean
        if abs(layer.std - before.mean) <= _SPREADS * before.spread or (
            1 / _OTHER < factor < _OTHER
        ):
            continue
        kind = "exploding" if factor > 1 else "vanishing"
        yield Finding(
            kind,
            "fault" if not 1 / _FAR_OTHER < factor < _FAR_OTHER else "warning",
            layer.key,
            f"The standard deviation of {layer.key} is {number(layer.std)}, "
            f"{number(factor)} times what it was at export ({number(before.mean)}); "
            f"the layers before it are within {_OTHER:.0f} times. Look at the weights that lead "
            "to it.",
        )
        return
