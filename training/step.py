"""What ran in one step of training: outputs measured as they come, gradients as they arrive."""

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from formats.observation import activation_key
from formats.structure import flatten
from training.changes import Change
from training.statistics import Meter

__all__ = ["Part", "Step"]


@dataclass
class Part:
    """One part of a layer's output in one call.

    Attributes:
        key: its name in the record.
        output: position of its statistics in the meter.
        inputs: positions of what went into the layer.
        gradient: position of the gradient with respect to it, once one has arrived.
    """

    key: str
    output: int
    inputs: tuple[int, ...]
    gradient: int | None = None


class _Tap:
    """The hook on one tensor. Several layers may have it as their output: a block and its last.

    The origin is the hook on the tensor that this one is a whole view of. In-place work on a view
    cuts the view, and hooks on it, out of the graph; the gradient then arrives at the origin.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.origin: _Tap | None = None
        self.layers: list[tuple[Part | None, tuple[Change, ...]]] = []
        self.handle: RemovableHandle | None = None

    def __call__(self, gradient: Tensor) -> Tensor | None:
        arrived = gradient
        position: int | None = None
        # Backwards: the gradient comes to the outermost layer first.
        for part, changes in reversed(self.layers):
            if part is not None:
                if position is None:
                    position = self.meter.add(gradient)
                part.gradient = position
            for change in changes:
                changed = change(gradient)
                if changed is not None and changed is not gradient:
                    gradient, position = changed, None
        return None if gradient is arrived else gradient

    def fall_back(self) -> None:
        """Leave the work to the origin, if there is one."""
        if self.origin is not None:
            self.origin.layers += self.layers
            self.layers = []
            self.origin.fall_back()


@dataclass
class _Seen:
    """A tensor that came by: which version of it was measured where, and its hook."""

    version: int
    position: int | None = None
    tap: _Tap | None = None


@dataclass
class Step:
    """Everything since the last `Observer.step`.

    Attributes:
        parts: in the order of the forward pass.
        rows: length of axis 0 of what went into the first layer; 0 before anything ran.
        meter: has the statistics.
    """

    parts: list[Part] = field(default_factory=list)
    rows: int = 0
    meter: Meter = field(default_factory=Meter)
    _calls: Counter[str] = field(default_factory=Counter)
    _seen: dict[int, tuple["weakref.ref[Tensor]", _Seen]] = field(default_factory=dict)
    _taps: "weakref.WeakSet[_Tap]" = field(default_factory=weakref.WeakSet)

    def ran(
        self, name: str | None, inputs: Sequence[Any], output: Any, changes: tuple[Change, ...]
    ) -> Any:
        """Take note of a layer that has run.

        Args:
            name: its name, or None if only its gradient is to be changed.
            inputs: its arguments.
            output: what it returned; all tensors in it are its parts.
            changes: what to do with the gradient with respect to each of them.

        Returns:
            The output. A layer that returns its own input, as `nn.Identity` does, gets a view of
            it: else the gradient would be that of all who use the input.
        """
        if name is not None and self._calls[name] and torch._C._current_graph_task_id() != -1:
            return output  # activation checkpointing runs it again, within the backward pass
        given = _tensors(inputs)
        if isinstance(output, Tensor) and output.requires_grad and self._passed(given, output):
            origin = self._tap(output)
            output = output.view_as(output)
            self._tap(output).origin = origin
        made = _tensors(output)
        sources = self._sources(given, made) if name is not None else ()
        for label, tensor in made:
            part = None
            if name is not None:
                key = activation_key(name, self._calls[name], label)
                part = Part(key, self._measured(tensor), sources)
                self.parts.append(part)
            if tensor.requires_grad:
                self._tap(tensor).layers.append((part, changes))
        if name is not None:
            self._calls[name] += 1
        return output

    def _passed(self, given: "_Tensors", output: Tensor) -> bool:
        """Tell whether the output is an input, and not one that was worked on in place."""
        if not any(output is tensor for _, tensor in given):
            return False
        known = self._seen.get(id(output))
        return known is None or known[0]() is not output or known[1].version == output._version

    def _sources(self, given: "_Tensors", made: "_Tensors") -> tuple[int, ...]:
        if not self.parts and given:
            first = given[0][1]
            self.rows = first.size(0) if first.dim() else 1
        return tuple(
            self._measured(tensor, worked_in_place=any(tensor is one for _, one in made))
            for _, tensor in given
            if tensor.is_floating_point() or tensor.is_complex()
        )

    def _measured(self, tensor: Tensor, worked_in_place: bool = False) -> int:
        """Return where a tensor's statistics are; before the layer, if it worked in place."""
        seen = self._look(tensor, any_version=worked_in_place)
        if seen.position is None:
            seen.position = self.meter.add(tensor)
        return seen.position

    def _tap(self, tensor: Tensor) -> _Tap:
        seen = self._look(tensor)
        if seen.tap is None:
            seen.tap = _Tap(self.meter)
            seen.tap.handle = tensor.register_hook(seen.tap)
            self._taps.add(seen.tap)
        return seen.tap

    def _look(self, tensor: Tensor, any_version: bool = False) -> _Seen:
        version = 0 if tensor.is_inference() else tensor._version
        known = self._seen.get(id(tensor))
        if known is not None and known[0]() is tensor:
            seen = known[1]
            if seen.version == version or (any_version and seen.position is not None):
                return seen
            if seen.tap is not None:
                seen.tap.fall_back()
        seen = _Seen(version)
        # Forgotten with the tensor: its id may then be another's.
        self._seen[id(tensor)] = (weakref.ref(tensor, partial(self._seen.pop, id(tensor))), seen)
        return seen

    def close(self) -> None:
        """Remove the hooks from the tensors, and forget what was measured."""
        for tap in list(self._taps):
            tap.layers.clear()
            if tap.handle is not None:
                tap.handle.remove()
        self._taps.clear()
        self._seen.clear()
        self.parts.clear()
        self.meter.clear()


_Tensors = list[tuple[str, Tensor]]


def _tensors(value: Any) -> _Tensors:
    """Return the dense tensors in a value with their paths."""
    leaves = [("", value)] if isinstance(value, Tensor) else flatten(value)
    return [
        (path, leaf)
        for path, leaf in leaves
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_nested
    ]
