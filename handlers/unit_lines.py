"""When what is known of units goes to the activation log, and as which lines."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from formats.activation import now
from formats.signature import Signature
from formats.units import LayerUnits, UnitsRecord
from handlers.jsontext import dumps
from handlers.units import UnitWatch

__all__ = ["UnitLines"]

_SECONDS: Final = 60.0
_BYTES_A_SECOND: Final = 200
_CHANGED: Final = 1 / 6
"""Part of the time between two lines after which a changed set of dead units is worth one."""
_UNITS_A_LINE: Final = 10_000
"""Units whose counts share a line: some 80 kB, which every channel takes."""


class UnitLines:
    """Writes what a watch has counted, when it first knows which units are dead, and now and then.

    That is within ten seconds when the dead have changed, and each minute. Counts of many units
    take longer: a worker writes no more than 200 bytes of them a second.

    Args:
        signature: of the model.
        put: takes a line, which `make` returns; see `handlers.line_log.LineLog.put`.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        signature: Signature,
        put: Callable[[Callable[[], bytes]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._signature = signature
        self._worker = uuid.uuid4().hex
        self._put = put
        self._clock = clock
        self._last = clock()
        self._interval = _SECONDS
        self._dead: dict[str, int] = {}
        self._rows = 0
        self._watch: UnitWatch | None = None

    def note(self, watch: UnitWatch, dead: Mapping[str, int]) -> None:
        """Write lines if it is time to; call it after each batch that was counted.

        Args:
            watch: what counts.
            dead: what its `dead()` returned.
        """
        self._watch = watch
        waited = self._clock() - self._last
        # Within one worker's life a unit only ever leaves the dead: their number tells all.
        changed = dead != self._dead and (not self._dead or waited >= self._interval * _CHANGED)
        if changed or waited >= self._interval:
            self._write(watch)

    def close(self) -> None:
        """Write what was counted since the last line."""
        if self._watch is not None and self._watch.rows() > self._rows:
            self._write(self._watch)

    def _write(self, watch: UnitWatch) -> None:
        self._last = self._clock()
        self._dead, self._rows = watch.dead(), watch.rows()
        size = 0
        for layers in _portions(watch.layers()):
            line = dumps(self._record(layers).to_json()) + b"\n"
            size += len(line)
            self._put(lambda line=line: line)  # type: ignore[misc]
        self._interval = max(_SECONDS, size / _BYTES_A_SECOND)

    def _record(self, layers: dict[str, LayerUnits]) -> UnitsRecord:
        own = self._signature
        return UnitsRecord(now(), own.model, own.model_version, self._worker, layers)


def _portions(layers: dict[str, LayerUnits]) -> Iterator[dict[str, LayerUnits]]:
    portion: dict[str, LayerUnits] = {}
    units = 0
    for key, layer in layers.items():
        counts = len(layer.active or layer.dead or ())
        if portion and units + counts > _UNITS_A_LINE:
            yield portion
            portion, units = {}, 0
        portion[key] = layer
        units += counts
    if portion:
        yield portion
