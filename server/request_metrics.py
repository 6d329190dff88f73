"""What is counted of requests, for Prometheus."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, Final

from server.exposition import Family, counter, histogram

__all__ = ["RequestMetrics"]

# Upper bounds of the buckets; times in milliseconds.
_MILLISECONDS: Final = (
    0.5, 1, 2, 3, 5, 7.5, 10, 15, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000,
    120_000,
)  # fmt: skip
_RUN_MILLISECONDS: Final = (
    0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000,
    60_000, 120_000,
)  # fmt: skip
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
_Key = tuple[str | None, str | None, str, int, str | None]


class _Hits:
    """A histogram: how often each bucket was hit, and the sum."""

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def merge(self, other: "_Hits") -> None:
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        self.sum += other.sum


class _Series:
    """What is known of requests with the same labels."""

    __slots__ = ("batch", "duration", "queued", "ran", "received", "refused", "requests", "rows",
                 "sent")  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.refused = self.received = self.sent = 0
        self.duration, self.queued = _Hits(_MILLISECONDS), _Hits(_MILLISECONDS)
        self.ran, self.batch = _Hits(_RUN_MILLISECONDS), _Hits(_BATCH)
        self.rows = _Hits(_ROWS)


class RequestMetrics:
    """Counts requests by what `Reader.read` says of each."""

    def __init__(self) -> None:
        self._series: dict[_Key, _Series] = {}

    def count(self, record: dict[str, Any]) -> None:
        """Count a request."""
        status = record["status"]
        key = (record["model"], record["version"], record["endpoint"], status, record["error"])
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series()
        series.requests += 1
        series.received += record["bytes_in"]
        series.sent += record["bytes_out"]
        total = record["total_ms"]
        hits = series.duration
        hits.buckets[bisect_left(_MILLISECONDS, total)] += 1
        hits.sum += total
        queued, ran, rows = record["queued_ms"], record["run_ms"], record["rows"]
        if queued is not None:
            # Written out: these are half of what a request costs here.
            hits = series.queued
            hits.buckets[bisect_left(_MILLISECONDS, queued)] += 1
            hits.sum += queued
            if ran is not None:
                hits = series.ran
                hits.buckets[bisect_left(_RUN_MILLISECONDS, ran)] += 1
                hits.sum += ran
                hits, batch = series.batch, record["batch"]
                hits.buckets[bisect_left(_BATCH, batch)] += 1
                hits.sum += batch
            if rows is not None:
                hits = series.rows
                hits.buckets[bisect_left(_ROWS, rows)] += 1
                hits.sum += rows
        elif status >= 400:
            series.refused += 1

    def families(self) -> Iterator[Family]:
        """What Prometheus is told."""
        by_status = ("model", "version", "endpoint", "status", "error")
        yield counter(
            "vitrine_requests_total",
            "Requests answered, by what they asked for, status and error code.",
            by_status,
            self._totals(lambda key: (*_model(key), key[2], str(key[3]), key[4] or ""), "requests"),
        )
        yield counter(
            "vitrine_requests_refused_total",
            "Requests answered with an error before a model's worker had them.",
            ("model", "error"),
            self._totals(lambda key: (key[0] or "", key[4] or ""), "refused", least=1),
        )
        yield counter(
            "vitrine_received_bytes_total",
            "Bytes of requests, headers included.",
            ("model", "version"),
            self._totals(_model, "received"),
        )
        yield counter(
            "vitrine_sent_bytes_total",
            "Bytes of answers, headers included.",
            ("model", "version"),
            self._totals(_model, "sent"),
        )
        yield self._histogram(
            "vitrine_request_duration_seconds",
            "Time from a request's headers until the last byte of its answer.",
            "duration",
            ("model", "version", "endpoint", "status_class"),
            lambda key: (*_model(key), key[2], f"{key[3] // 100}xx"),
        )
        for name, text, attribute in (
            ("vitrine_queue_duration_seconds",
             "Time from a request's headers until a worker had it.", "queued"),
            ("vitrine_run_duration_seconds",
             "Time that the model took for a batch, counted for each request in it.", "ran"),
            ("vitrine_batch_requests",
             "Requests that shared a run of the model, counted for each of them.", "batch"),
            ("vitrine_request_rows", "Rows of a request.", "rows"),
        ):  # fmt: skip
            yield self._histogram(name, text, attribute, ("model", "version"), _model)

    def _totals(
        self, labels: Callable[[_Key], tuple[str, ...]], attribute: str, least: int = 0
    ) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], float] = {}
        for key, series in self._series.items():
            value = getattr(series, attribute)
            if value >= least:
                found[labels(key)] = found.get(labels(key), 0) + value
        return found

    def _histogram(
        self,
        name: str,
        text: str,
        attribute: str,
        names: tuple[str, ...],
        labels: Callable[[_Key], tuple[str, ...]],
    ) -> Family:
        found: dict[tuple[str, ...], _Hits] = {}
        for key, series in self._series.items():
            own: _Hits = getattr(series, attribute)
            if any(own.buckets):
                found.setdefault(labels(key), _Hits(own.bounds)).merge(own)
        unit = 1000 if name.endswith("_seconds") else 1
        return histogram(
            name,
            text,
            names,
            {
                values: ([bound / unit for bound in own.bounds], own.buckets, own.sum / unit)
                for values, own in found.items()
            },
        )


def _model(key: _Key) -> tuple[str, ...]:
    return key[0] or "", key[1] or ""
