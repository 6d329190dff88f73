"""The units line of the activation log: which units of ReLU-like layers fire."""

from dataclasses import dataclass
from typing import Any, Final

from formats.document import FormatError

__all__ = ["FORMAT", "MOST_COUNTED", "VERSION", "LayerUnits", "UnitsRecord"]

FORMAT: Final = "vitrine.units"
VERSION: Final = 1
MOST_COUNTED: Final = 4096
"""Units of a layer up to which each has its count; of a larger one, the first so many that are
dead are named."""


@dataclass(frozen=True)
class LayerUnits:
    """How often the units of one layer were active, since the worker started.

    Attributes:
        rows: that were looked at.
        units: how many there are.
        active_fraction: in which part of the rows a unit was active, the mean over units.
        dead: the indices of units that were never active, at most `MOST_COUNTED`; None while too
            few rows were looked at to say.
        active: in how many rows each unit was active; None for a layer of more than
            `MOST_COUNTED`.
    """

    rows: int
    units: int
    active_fraction: float
    dead: tuple[int, ...] | None
    active: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, without `active` where there is none."""
        fields = {
            "rows": self.rows,
            "units": self.units,
            "active_fraction": self.active_fraction,
            "dead": None if self.dead is None else list(self.dead),
        }
        return fields if self.active is None else {**fields, "active": list(self.active)}

    @classmethod
    def parse(cls, fields: Any) -> "LayerUnits":
        """Read what `to_json` returned.

        Raises:
            FormatError: it is something else.
        """
        try:
            rows, units = _count(fields["rows"]), _count(fields["units"])
            fraction = fields["active_fraction"]
            if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
                raise TypeError(f"active_fraction is {fraction!r}")
            dead = None if fields["dead"] is None else tuple(map(_count, fields["dead"]))
            active = tuple(map(_count, fields["active"])) if "active" in fields else None
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"units of a layer are damaged: {error}") from None
        if active is not None and len(active) != units:
            raise FormatError(f"{len(active)} counts of {units} units")
        return cls(rows, units, float(fraction), dead, active)


@dataclass(frozen=True)
class UnitsRecord:
    """One line of the activation log about units; a worker's later line replaces its earlier one.

    Attributes:
        time: RFC 3339 in UTC with milliseconds.
        model: the model's name.
        model_version: its version.
        worker: an id of one life of one worker: another one after a restart. Counts of several
            workers add up.
        layers: by activation key (see `formats.activation`); where the layers have too many units
            for one line, those of a worker come in several.
    """

    time: str
    model: str
    model_version: str
    worker: str
    layers: dict[str, LayerUnits]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **vars(self),
            "layers": {key: layer.to_json() for key, layer in self.layers.items()},
        }

    @classmethod
    def parse(cls, fields: Any) -> "UnitsRecord":
        """Read what `to_json` returned.

        Raises:
            FormatError: it is something else, or of another version.
        """
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise FormatError(f"not a {FORMAT} record")
        if fields.get("version") != VERSION:
            raise FormatError(f"of version {fields.get('version')!r}; this Vitrine reads {VERSION}")
        texts = [fields.get(name) for name in ("time", "model", "model_version", "worker")]
        layers = fields.get("layers")
        if not all(isinstance(text, str) for text in texts) or not isinstance(layers, dict):
            raise FormatError(f"a {FORMAT} record is damaged")
        time, model, version, worker = map(str, texts)
        parsed = {key: LayerUnits.parse(layer) for key, layer in layers.items()}
        return cls(time, model, version, worker, parsed)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
