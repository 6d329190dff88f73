"""The activation record: what one request's layers looked like, as one line of JSON."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from formats.gradient import Gradients
from formats.statistics import LayerRecord, LayerStatistics

VERSION: Final = 1
FORMAT: Final = "vitrine.activation"


def now() -> str:
    """Return the time as a record has it: RFC 3339 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Activations:
    """What one request's layers looked like.

    Attributes:
        layers: by qualified name (`block.relu`, as `named_modules()` has it), in execution
            order. A layer that ran more than once has `@1`, `@2`, ... behind its name from the
            second time on; a part of a tuple or dict output has `:part` behind that.
        non_finite: the first layer in execution order that made NaN or an infinity from finite
            inputs; None when no layer did.
        dead: layers all of whose elements were zero.
    """

    layers: dict[str, LayerRecord[LayerStatistics]]
    non_finite: str | None = None
    dead: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return `{"layers": ..., "flags": {"non_finite": ..., "dead": [...]}}`."""
        return {
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "flags": {"non_finite": self.non_finite, "dead": list(self.dead)},
        }


@dataclass(frozen=True)
class ActivationRecord:
    """One line of the activation log. It never holds a request's raw input.

    Attributes:
        time: RFC 3339 in UTC with milliseconds, e.g. "2026-01-31T12:00:00.123Z".
        model: the model's name.
        model_version: its version.
        request_id: the server's id of the request.
        traceparent: the client's W3C trace context, or None.
        correlation_id: the client's X-Correlation-Id, or None.
        reason: why it was written: "asked", "sampled", "non_finite", "error" or "training".
        rows: how many rows the request had.
        activations: the statistics; None for a request that ended in an error.
        error: the error's code, or None.
        gradients: the gradient flow, where it was asked for or in training.
    """

    time: str
    model: str
    model_version: str
    request_id: str
    traceparent: str | None
    correlation_id: str | None
    reason: str
    rows: int
    activations: Activations | None
    error: str | None = None
    gradients: Gradients | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        apart = ("activations", "gradients")
        fields: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            **{name: value for name, value in vars(self).items() if name not in apart},
        }
        if self.activations is not None:
            fields |= self.activations.to_json()
        if self.gradients is not None:
            fields["gradients"] = self.gradients.to_json()
        return fields
