"""Rules on requests: errors, and gradients that vanish or explode."""

from collections.abc import Callable, Iterator
from typing import Final

from observe.facts import Facts
from observe.finding import Finding, share

__all__ = ["rules"]

_SERVER: Final = frozenset({"internal", "outputs_changed", "rows_changed", "out_of_memory"})
"""Codes of errors that are no client's fault."""
_FREQUENT: Final = 0.1
_FEW: Final = 3
_CODES: Final = 5


def rules(facts: Facts, failed: Callable[[str], tuple[str, ...]]) -> Iterator[Finding]:
    """Go through gradients and errors.

    Args:
        facts: of the window.
        failed: returns ids of requests that ended in an error of a code.
    """
    yield from _gradients(facts)
    yield from _errors(facts, failed)


def _gradients(facts: Facts) -> Iterator[Finding]:
    what = "steps of training" if facts.steps else "requests that were explained"
    for kind, last, why in (
        ("exploding", "exploded", "are over a thousand times those at the last layer"),
        ("vanishing", "vanished", "are under a thousandth of those at the last layer"),
    ):
        # The way back begins at the last layer: there is where the flow first goes wrong.
        for flow in reversed(facts.flows):
            wrong = flow.exploding if kind == "exploding" else flow.vanishing
            if not wrong or wrong / flow.records < _FREQUENT:
                continue
            counted = share(wrong, flow.records).replace("requests", what)
            yield Finding(
                f"gradient_{kind}",
                "warning" if wrong >= _FEW else "note",
                flow.key,
                f"On their way back, gradients {last} at {flow.key} in {counted}: they {why}"
                f"{', or not finite' if kind == 'exploding' else ''}.",
            )
            break


def _errors(facts: Facts, failed: Callable[[str], tuple[str, ...]]) -> Iterator[Finding]:
    for code, records in list(facts.errors.items())[:_CODES]:
        own = code in _SERVER
        yield Finding(
            "errors",
            "warning" if own else "note",
            None,
            f"{share(records, facts.records)} in the log ended in the error {code}, which is "
            f"{'no fault of the client' if own else 'about what was sent'}.",
            failed(code),
        )
    others = len(facts.errors) - _CODES
    if others > 0:
        text = f"{others} other codes of errors occurred, less often."
        yield Finding("errors", "note", None, text)
