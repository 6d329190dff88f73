"""The record of a step, in the activation log's own format."""

import json
from pathlib import Path

from formats.activation import ActivationRecord, Activations, now
from formats.gradient import gradient_flow
from formats.statistics import LayerRecord
from training.step import Step

__all__ = ["append_record", "record_of"]


def record_of(step: Step, model: str, version: str, request_id: str) -> ActivationRecord:
    """Bring what a step measured to the host, and make its record."""
    measured = step.meter.read()
    layers = {part.key: LayerRecord(measured[part.output].activation()) for part in step.parts}
    gradients = {
        part.key: LayerRecord(measured[part.gradient].gradient())
        for part in step.parts
        if part.gradient is not None
    }
    producer = next(
        (
            part.key
            for part in step.parts
            if not measured[part.output].finite
            and all(measured[source].finite for source in part.inputs)
        ),
        None,
    )
    dead = tuple(key for key, record in layers.items() if record.total.zero_fraction == 1)
    return ActivationRecord(
        time=now(),
        model=model,
        model_version=version,
        request_id=request_id,
        traceparent=None,
        correlation_id=None,
        reason="training",
        rows=step.rows,
        activations=Activations(layers, producer, dead),
        gradients=gradient_flow("loss", gradients) if gradients else None,
    )


def append_record(path: str | Path, record: ActivationRecord) -> None:
    """Add a record to a file as one line of JSON, as the activation log has it.

    Raises:
        OSError: the file cannot be written.
    """
    line = json.dumps(record.to_json(), separators=(",", ":"), allow_nan=False)
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
