"""The graphs that answer, made from a saved module: the same for the export and for serving.

What the export verifies is what serves, because both make it here.
"""

from engine.engines import Engine, make
from engine.memory import keep_memory
from engine.processor import processor
from engine.torchscript import (
    OBSERVE,
    PREFIX,
    SUMMARY,
    observed_graph,
    plain_graph,
    set_mode,
    unoptimized,
)

__all__ = [
    "OBSERVE",
    "PREFIX",
    "SUMMARY",
    "Engine",
    "keep_memory",
    "make",
    "observed_graph",
    "plain_graph",
    "processor",
    "set_mode",
    "unoptimized",
]
