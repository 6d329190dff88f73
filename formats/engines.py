"""The engines that can run a model, and what the export found of each."""

from dataclasses import dataclass
from typing import Final

__all__ = ["AOT", "ENGINES", "ONEDNN", "TORCHSCRIPT", "Engine"]

TORCHSCRIPT: Final = "torchscript"
"""The frozen TorchScript graph: always there, and what every other engine is held against."""

ONEDNN: Final = "onednn"
"""The frozen graph with its convolutions and what is between them given to oneDNN."""

AOT: Final = "aot"
"""Machine code that AOTInductor compiled at export."""

ENGINES: Final = (TORCHSCRIPT, ONEDNN, AOT)


@dataclass(frozen=True)
class Engine:
    """What the export found of one engine.

    Attributes:
        name: one of `ENGINES`.
        offered: whether it may serve: it passed every check that the frozen graph passed.
        max_difference: largest absolute difference from the eager module's answers.
        detail: one sentence: what was compared, or why it is not offered.
    """

    name: str
    offered: bool
    max_difference: float
    detail: str
