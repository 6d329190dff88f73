"""The process that exports spans: `python -m server.trace_process`, started by `server.observe`.

It reads a line of JSON for each sampled request, and OpenTelemetry's SDK does the rest: batches,
retries, and dropping what cannot be sent.
"""

import os
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import orjson
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import IdGenerator, RandomIdGenerator, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from server import __version__

__all__ = ["Spans", "main"]

_NANO: Final = 1_000_000_000
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
# Attributes by what they are called in the request log; the first are OpenTelemetry's own names.
_ATTRIBUTES: Final = {
    "http.request.method": "method",
    "url.path": "path",
    "http.response.status_code": "status",
    "client.address": "client",
    "error.type": "error",
    "http.request.size": "bytes_in",
    "http.response.size": "bytes_out",
    "vitrine.model": "model",
    "vitrine.version": "version",
    "vitrine.endpoint": "endpoint",
    "vitrine.rows": "rows",
    "vitrine.batch": "batch",
    "vitrine.request_id": "request_id",
    "vitrine.correlation_id": "correlation_id",
}


class _Ids(IdGenerator):
    """Gives the request's span the ids that its line in the log has."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self.next_trace = self.next_span = 0

    def generate_trace_id(self) -> int:
        return self.next_trace

    def generate_span_id(self) -> int:
        given, self.next_span = self.next_span, 0
        return given or self._random.generate_span_id()


class Spans:
    """Makes spans of requests.

    Args:
        processor: Takes them.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        os.environ.setdefault("OTEL_SERVICE_NAME", "vitrine")
        self._ids = _Ids()
        self._provider = TracerProvider(
            # Whoever wrote the line has sampled.
            sampler=ALWAYS_ON,
            resource=Resource.create(),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("vitrine", __version__)

    def add(self, record: dict[str, Any]) -> None:
        """Make a request's span, with one for its wait and one for the model's run."""
        start = int(datetime.fromisoformat(record["time"]).timestamp() * _NANO)
        trace_id = int(record["trace_id"], 16)
        parent = trace.INVALID_SPAN
        if record["parent_id"] is not None:
            client = SpanContext(trace_id, int(record["parent_id"], 16), True, _SAMPLED)
            parent = NonRecordingSpan(client)
        self._ids.next_trace, self._ids.next_span = trace_id, int(record["span_id"], 16)
        span = self._tracer.start_span(
            " ".join(part for part in (record["endpoint"], record["model"]) if part),
            context=trace.set_span_in_context(parent),
            kind=SpanKind.SERVER,
            attributes={
                name: record[key] for name, key in _ATTRIBUTES.items() if record[key] is not None
            },
            start_time=start,
        )
        if record["status"] >= 500:
            span.set_status(Status(StatusCode.ERROR))
        within = trace.set_span_in_context(span)
        for name, begin, length in (
            ("queue", 0.0, record["queued_ms"]),
            ("run", record["began_ms"], record["run_ms"]),
        ):
            if length is not None:
                child = self._tracer.start_span(name, within, start_time=start + _nanos(begin))
                child.end(start + _nanos(begin + length))
        span.end(start + _nanos(record["total_ms"]))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


def _nanos(milliseconds: float) -> int:
    return int(milliseconds * 1_000_000)


def main(lines: Iterable[bytes]) -> None:
    """Export until there are no more lines."""
    spans = Spans(BatchSpanProcessor(OTLPSpanExporter()))
    for line in lines:
        spans.add(orjson.loads(line))
    spans.close()


if __name__ == "__main__":
    main(sys.stdin.buffer)
