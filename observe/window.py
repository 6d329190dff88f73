"""Which records of an index are looked at: a model, a version, a span of time."""

from dataclasses import dataclass
from typing import Any

from observe.index import Index

__all__ = ["ModelSummary", "Window", "models"]


@dataclass(frozen=True)
class Window:
    """Which records are looked at.

    Attributes:
        model: the model's name.
        version: only this version; None for all.
        since: milliseconds since 1970, the first that counts; None for the log's beginning.
        until: the first that no longer counts; None for its end.
    """

    model: str
    version: str | None = None
    since: int | None = None
    until: int | None = None

    def condition(self, alias: str) -> tuple[str, list[Any]]:
        """Return SQL for the records, `alias` being the table with `time`, and its parameters."""
        parts, values = ["TRUE"], []
        for sign, bound in ((">=", self.since), ("<", self.until)):
            if bound is not None:
                parts.append(f"{alias}.time {sign} ?")
                values.append(bound)
        return " AND ".join(parts), values

    def owner(self, alias: str) -> tuple[str, list[Any]]:
        """Return SQL for the model and its version, `alias` having both, and its parameters."""
        if self.version is None:
            return f"{alias}.model = ?", [self.model]
        return f"{alias}.model = ? AND {alias}.version = ?", [self.model, self.version]


@dataclass(frozen=True)
class ModelSummary:
    """One version of a model in the log: how many records, and from when to when."""

    model: str
    version: str
    records: int
    errors: int
    first: int
    last: int


def models(index: Index) -> list[ModelSummary]:
    """Return the models in the log and their versions, by name and version."""
    with index.cursor() as cursor:
        found = cursor.execute(
            "SELECT model, version, count(*), count(error), min(time), max(time) "
            "FROM record GROUP BY ALL ORDER BY 1, 2"
        ).fetchall()
    return [ModelSummary(*row) for row in found]
