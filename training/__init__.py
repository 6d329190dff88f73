"""Hooks on a module while it trains: what its layers put out, and what gradients arrive at them."""

from training.changes import Change, clip_norm, drop_non_finite, scale
from training.observer import Observer, observed
from training.record import append_record

__all__ = [
    "Change",
    "Observer",
    "append_record",
    "clip_norm",
    "drop_non_finite",
    "observed",
    "scale",
]
