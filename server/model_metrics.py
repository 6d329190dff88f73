"""What the supervisor knows of the models, for Prometheus."""

from collections.abc import Iterator, Sequence

from server.exposition import Family, counter, gauge
from server.watch import Watch

__all__ = ["ModelMetrics"]


class ModelMetrics:
    """Readiness, workers and their restarts.

    Args:
        names: Of the models.
        watch: Knows the condition of the server.
    """

    def __init__(self, names: Sequence[str], watch: Watch) -> None:
        self._names, self._watch = names, watch

    def families(self) -> Iterator[Family]:
        """What Prometheus is told."""
        condition = self._watch.condition()
        ready: dict[tuple[str, ...], float] = {}
        workers: dict[tuple[str, ...], float] = {}
        restarts: dict[tuple[str, ...], float] = {}
        for name in self._names:
            versions = [one for one in condition.models if one.name == name]
            ready[name,] = float(condition.problem(name) is None)
            workers[name,] = sum(one.workers for one in versions)
            restarts[name,] = sum(one.restarts for one in versions)
        label = ("model",)
        yield gauge("vitrine_model_ready", "Whether it answers.", label, ready)
        yield gauge("vitrine_model_workers", "Workers that are ready.", label, workers)
        yield counter(
            "vitrine_worker_restarts_total",
            "Workers that were there again in another process.",
            label,
            restarts,
        )
