"""Which requests are measured and logged, and what the metrics say of them."""

import random
import time
from collections.abc import Mapping
from typing import Final

from formats.activation import ActivationRecord, Activations, now
from formats.gradient import Gradients
from formats.signature import Signature
from handlers.activation_log import ActivationLog
from handlers.log_settings import LogSettings
from handlers.sample import LogCounters, Sample
from handlers.unit_lines import UnitLines
from handlers.units import UnitWatch

__all__ = ["Recorder"]

_LONGEST: Final = 1024
"""Characters that are kept of an identifier a client sends."""
_GAUGE_SECONDS: Final = 1.0


class Recorder:
    """Writes activation records and keeps what the metrics report, for one model in one worker.

    Args:
        signature: of the model.
        settings: of the log; off by default.
    """

    def __init__(self, signature: Signature, settings: LogSettings | None = None) -> None:
        self._signature = signature
        self._settings = settings or LogSettings()
        self._log = ActivationLog(self._settings, signature.model)
        self._units = UnitLines(signature, self._log.put)
        self._samples: dict[tuple[str, str], Sample] = {}
        self._gauges_due = 0.0
        self._counters = LogCounters("vitrine_activation_records", self._log.counts)
        self._random = random.Random()  # noqa: S311 (sampling is no secret)

    @property
    def logs_anomalies(self) -> bool:
        """Whether requests are to be logged because of an error or of values not finite."""
        return self._settings.mode == "sampled"

    def draw(self) -> float:
        """Return a request's random number, evenly from 0 to below 1."""
        return self._random.random()

    def samples(self, draw: float) -> bool:
        """Tell whether a request is measured although it does not ask."""
        return self._settings.reason(draw, asked=False) is not None

    def record(
        self,
        request_id: str,
        headers: Mapping[str, str],
        draw: float,
        *,
        asked: bool,
        rows: int,
        seen: Activations | None,
        error: str | None,
        gradients: Gradients | None = None,
    ) -> None:
        """Log a request that was answered, if it is to be logged, and count it.

        Args:
            request_id: the server's own id.
            headers: of the request.
            draw: its random number.
            asked: whether it asks for activations.
            rows: how many rows it had; 0 if that was never known.
            seen: what its layers looked like, if they were measured.
            error: the code of the error it ended in, or None.
            gradients: what arrived at its layers, if that was measured.
        """
        reason = self._settings.reason(
            draw,
            asked=asked,
            error=error is not None,
            non_finite=seen is not None and _strange(seen),
        )
        if seen is not None:
            self._count(seen)
        if reason is None:
            return
        self._log.write(
            ActivationRecord(
                time=now(),
                model=self._signature.model,
                model_version=self._signature.model_version,
                request_id=request_id,
                traceparent=_identifier(headers, "traceparent"),
                correlation_id=_identifier(headers, "x-correlation-id"),
                reason=reason,
                rows=rows,
                activations=seen if error is None else None,
                error=error,
                gradients=gradients,
            )
        )

    def note_units(self, watch: UnitWatch) -> None:
        """Take in how many units of each layer were never active, and log it now and then."""
        dead = watch.dead()
        for layer, units in dead.items():
            self._sample("vitrine_activation_dead_units", units, layer)
        if self._settings.mode != "off":
            self._units.note(watch, dead)

    def take_samples(self) -> list[Sample]:
        """Return what there is for the metrics since the last call.

        Counters come at once, gauges at most once a second: TorchServe reads each as a line of
        text, and with a few layers that takes longer than a small model's batch.
        """
        now = time.monotonic()
        due = now >= self._gauges_due
        taken = [sample for sample in self._samples.values() if due or sample.counter]
        for sample in taken:
            del self._samples[sample.name, sample.labels["Layer"]]
        if not all(sample.counter for sample in taken):
            self._gauges_due = now + _GAUGE_SECONDS
        if self._settings.mode != "off":
            taken += self._counters.take_samples()
        return taken

    def close(self) -> None:
        """Stop logging; what was handed to the writer is still written."""
        self._units.close()
        self._log.close()

    def _count(self, seen: Activations) -> None:
        for key, record in seen.layers.items():
            total = record.total
            if total.mean is not None:
                self._sample("vitrine_activation_mean", total.mean, key)
            if total.std is not None:
                self._sample("vitrine_activation_std", total.std, key)
            if total.zero_fraction is not None:
                self._sample("vitrine_activation_zero_fraction", total.zero_fraction, key)
            if total.non_finite:
                self._sample("vitrine_activation_non_finite", total.non_finite, key, counter=True)

    def _sample(self, name: str, value: float, layer: str, *, counter: bool = False) -> None:
        # One for each name and layer, however many requests there were.
        before = self._samples.get((name, layer))
        if counter and before is not None:
            value += before.value
        self._samples[name, layer] = Sample(name, value, {"Layer": layer}, counter)


def _strange(seen: Activations) -> bool:
    return seen.non_finite is not None or any(
        record.total.non_finite for record in seen.layers.values()
    )


def _identifier(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    return value[:_LONGEST] if value is not None else None
