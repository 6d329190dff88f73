"""Hooks on a module while it trains: `with observed(model) as training: ...`."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from formats.activation import ActivationRecord
from training.changes import Change, in_turn
from training.layers import matching, refuse_unobservable
from training.record import record_of
from training.step import Step

__all__ = ["Observer", "observed"]


class Observer:
    """What `observed` yields; `step` returns the record of what ran since the last one."""

    def __init__(self, name: str, version: str) -> None:
        self._name = name
        self._version = version
        self._number = 0
        self._step: Step | None = Step()

    def step(self) -> ActivationRecord:
        """Return the record of this step, and begin the next; the only transfer to the host.

        Call it after the backward pass or passes of the step. Of everything that ran since the last
        call it has the statistics of the outputs and of the gradients that arrived at them, over
        the whole batch: no layer has rows. Without a backward pass, `gradients` is None.

        Returns:
            A record with the reason "training" and `request_id` "step 0", "step 1", ...; `rows` is
            the length of axis 0 of what went into the first layer that ran. A graph that is kept
            beyond this call is not observed or changed any more.

        Raises:
            RuntimeError: the `with` block has ended.
        """
        if self._step is None:
            raise RuntimeError("the hooks are gone: step() belongs inside the with block")
        step, self._step = self._step, Step()
        try:
            record = record_of(step, self._name, self._version, f"step {self._number}")
        finally:
            step.close()
        self._number += 1
        return record

    def _close(self) -> None:
        if self._step is not None:
            self._step.close()
        self._step = None


@contextmanager
def observed(
    model: nn.Module,
    layers: Sequence[str] = ("*",),
    *,
    change: Mapping[str, Change | Sequence[Change]] | None = None,
    name: str | None = None,
    version: str = "",
) -> Iterator[Observer]:
    """Observe an eager module while it trains, and change its gradients if that is wanted.

    Each layer has a forward hook; that puts a hook on the tensors of its output, which sees the
    gradient with respect to them, also where a later layer works in place. When the block ends, in
    whatever way, all of them are gone, and hooks in a graph that somebody kept do nothing. What
    runs without gradients (`torch.no_grad`, `torch.inference_mode`) is not observed; train or eval
    mode makes no difference. A layer that runs several times in a step, as in gradient accumulation
    or in a GAN, has `@1`, `@2`, ... behind its name from the second time on. Where several backward
    passes come through one output, the record has the gradient of the last. Layers that activation
    checkpointing runs again are seen once. A deep copy of the model is not observed. An output that
    is a view, as that of `nn.Flatten`, has no gradient if something works on it in place.

    Args:
        model: not compiled, scripted or split over threads.
        layers: globs on names, or on classes (`type:Conv*`); none for changes alone.
        change: by glob, what to do with the gradient at the output of the layers it fits, one
            function or several in turn. The result flows on to the layers before. Statistics are of
            the gradient as it arrived, before that.
        name: the model's name in the records; its class by default.
        version: the model's version in the records.

    Raises:
        ValueError: a pattern fits no layer, or the model cannot be observed.
    """
    refuse_unobservable(model)
    chosen = matching(model, layers)
    changes: dict[nn.Module, tuple[Change, ...]] = {}
    for pattern, functions in (change or {}).items():
        for layer in matching(model, [pattern]):
            changes[layer] = changes.get(layer, ()) + in_turn(functions)
    observer = Observer(type(model).__name__ if name is None else name, version)
    handles: list[RemovableHandle] = []
    try:
        hook = _forward_hook(observer, chosen, changes)
        for layer in dict.fromkeys([*chosen, *changes]):
            # First, to see what the layer itself puts out; a scripted layer's own method refuses.
            handles.append(
                nn.Module.register_forward_hook(layer, hook, prepend=True, with_kwargs=True)
            )
        yield observer
    finally:
        observer._close()
        for handle in handles:
            handle.remove()


def _forward_hook(
    observer: Observer,
    names: Mapping[nn.Module, str],
    changes: Mapping[nn.Module, tuple[Change, ...]],
) -> Callable[..., Any]:
    # By weak reference: a hook that holds its own module would make a cycle of both. A deep copy
    # of the model shares the hook, and is not among these.
    own_names = weakref.WeakKeyDictionary(names)
    own_changes = weakref.WeakKeyDictionary(changes)

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        step = observer._step
        if step is None or not torch.is_grad_enabled():
            return None
        name, own = own_names.get(layer), own_changes.get(layer, ())
        if name is None and not own:
            return None
        seen = step.ran(name, (*args, *kwargs.values()), output, own)
        return None if seen is output else seen

    return hook
