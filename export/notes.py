"""The certificate's notes: what a user should know before trusting a model, a sentence each."""

from collections.abc import Sequence
from typing import Any, Final

from export.branches import Branch
from export.definition import Definition
from export.eager import Reference, answer
from export.functional import functional_calls
from export.inputs import Example
from export.shrink import show, shrink
from formats.layers import Layers

__all__ = ["notes_on"]

_NAMED: Final = 5
_REFUSALS_TRIED: Final = 16


def notes_on(
    definition: Definition,
    observed: Reference,
    found: Layers | None,
    loaded: Any,
    *,
    unknown: Sequence[Branch],
    hidden: Sequence[str],
) -> tuple[str, ...]:
    """Return what is to be said of an export that passed.

    Args:
        definition: the model.
        observed: its eager answers, and the inputs it refused.
        found: the layers that are observed; None for a trace.
        loaded: the saved module.
        unknown: ways that no input took.
        hidden: conditions of which nobody knows which way an input took.
    """
    return (
        *_layers(definition, found),
        *_branches(unknown),
        *_hidden(hidden),
        *_refusals(loaded, definition, observed),
    )


def _layers(definition: Definition, found: Layers | None) -> list[str]:
    if found is None:
        return ["a traced model has no compiled hooks: its activations cannot be observed"]
    notes = []
    calls = functional_calls(definition.module)
    if calls:
        notes.append(
            f"{_listed(calls, ', ')}: an activation called as a function is no layer, so it is not "
            "observed; use the module of the same name"
        )
    return [
        *notes,
        *(f"layer {name} is not observed: {why}" for name, why in found.left_out.items()),
    ]


def _branches(unknown: Sequence[Branch]) -> list[str]:
    if not unknown:
        return []
    return [
        f"no input took {_listed(list(map(str, unknown)), '; ')}: what is computed there is not "
        "verified; add an example that takes it"
    ]


def _listed(items: Sequence[str], separator: str) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return separator.join(items[:_NAMED]) + more


def _hidden(hidden: Sequence[str]) -> list[str]:
    return [
        f"{place} is in a part that was scripted before: whether an input took each way "
        "of it is not known"
        for place in hidden[:_NAMED]
    ]


def _refusals(loaded: Any, definition: Definition, observed: Reference) -> list[str]:
    """Say what the saved graph does with the inputs that the eager module refuses."""
    if not observed.refused:
        return []

    def differs(case: Example) -> bool:
        return _answers(loaded, case) and not _answers(definition.module, case)

    answered = [case for case in observed.refused[:_REFUSALS_TRIED] if differs(case)]
    notes = [
        f"{len(observed.refused)} of the made inputs were left out: the module raises on them, or "
        "returns other outputs"
    ]
    if answered:
        names = tuple(option.name for option in definition.inputs)
        shown = show(shrink(answered[0], differs), names)
        notes.append(
            f"the saved graph answers {len(answered)} of them all the same, where the eager module "
            f"does not: do not rely on an error there; one is {shown}"
        )
    return notes


def _answers(module: Any, case: Example) -> bool:
    try:
        answer(module, case)
    except Exception:
        return False
    return True
