"""Lines of an activation log that tell which units fire."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from formats.document import FormatError
from formats.units import VERSION, LayerUnits, UnitsRecord
from observe.log_time import in_milliseconds

__all__ = ["Units", "read_units"]


@dataclass(frozen=True)
class Units:
    """How often the units of one layer were active, as one worker tells.

    Attributes:
        time: milliseconds since 1970.
        worker: id of one life of one worker.
        layer: (model, version, layer's key, "layer").
        counted: since that worker started.
    """

    time: int
    worker: str
    layer: tuple[str, str, str, str]
    counted: LayerUnits


def read_units(fields: dict[str, Any]) -> list[Units] | str:
    """Return what a line tells of each layer, or why it is none: "damaged record", ..."""
    if fields.get("version") != VERSION:
        return "of another version"
    try:
        record = UnitsRecord.parse(fields)
        time = int(in_milliseconds([record.time])[0])
        for counted in record.layers.values():
            np.array([counted.rows, *(counted.active or ())], dtype=np.int64)
    except (FormatError, ValueError, OverflowError):
        return "damaged record"
    owner = (record.model, record.model_version)
    return [
        Units(time, record.worker, (*owner, key, "layer"), counted)
        for key, counted in record.layers.items()
    ]
