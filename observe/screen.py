"""A snapshot as lines for a terminal of any size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.text import Text

from observe.drift import LayerDrift
from observe.layer_table import LEGEND, LayerTable, layer_table
from observe.queries import ModelSummary, Row
from observe.reader import State
from observe.room import Lines, allot
from observe.snapshot import Snapshot
from observe.terminal import ago, printable, shortened
from observe.words import amount, moment, size, stretch

__all__ = ["Screen", "drift_words", "footer", "reasons", "waiting"]

_LINES_OF_ONE: Final = 2


@dataclass(frozen=True)
class Screen:
    """Everything that is shown of a model.

    Attributes:
        snapshot: its layers.
        state: how far the log has been read.
        asked: whether model or version was asked for.
        requests: requests per second in words, or None where no server is asked.
        findings: (severity, sentence), the worst first.
        units: by layer, how many units never fired, in words.
        drift: the drift alarm in words, or None.
        drifted: layers whose drift alarm rang.
    """

    snapshot: Snapshot
    state: State
    asked: bool = False
    requests: str | None = None
    findings: Sequence[tuple[str, str]] = ()
    units: dict[str, str] = field(default_factory=dict)
    drift: str | None = None
    drifted: frozenset[str] = frozenset()

    def render(self, console: Console, height: int | None) -> RenderableType:
        """Return what is printed.

        Args:
            console: whose width counts.
            height: lines there are; None for as many as needed.
        """
        most = None if height is None else _LINES_OF_ONE
        head = [line for text in self._head() for line in _wrapped(console, text, most)]
        told = [line for text in self._told() for line in _wrapped(console, text, most)]
        rows = [_request(row) for row in self.snapshot.flagged]
        legend = [Text(LEGEND, "dim")] if self.snapshot.baseline else []
        wanted = Lines(len(head), len(self.snapshot.layers), len(legend), len(told), len(rows))
        lacking = self._table(console, None).columns
        given = wanted if height is None else allot(wanted, height, bool(lacking))
        table = self._table(console, given.layers)
        notes = [
            amount(more, *what)
            for more, what in (
                (table.hidden, ("layer", "layers")),
                (wanted.told - given.told, ("line of findings", "lines of findings")),
                (wanted.rows - given.rows, ("flagged request", "flagged requests")),
            )
            if more
        ]
        if table.columns:
            notes.append("columns " + ", ".join(table.columns))
        lines: list[RenderableType] = [*head[: given.head], table.table]
        lines += [*legend[: given.legend], *told[: given.told]]
        if given.rows:
            lines += [Text("latest flagged requests (UTC)", "underline"), *rows[: given.rows]]
        if notes:
            lines.append(Text("no room for: " + "; ".join(notes), "dim italic"))
        return Group(*(_one_line(line) for line in [*lines, footer(self.state)]))

    def _table(self, console: Console, most: int | None) -> LayerTable:
        return layer_table(
            self.snapshot.layers,
            self.snapshot.baseline,
            console.width,
            most,
            units=self.units,
            drifted=self.drifted,
        )

    def _told(self) -> Iterator[Text]:
        for severity, text in self.findings:
            yield Text(f"{severity}: {printable(text)}", _SEVERITY.get(severity, ""))

    def _head(self) -> Iterator[Text]:
        shown = self.snapshot
        rates = [f"{shortened(shown.rate)} records/s logged"]
        if self.requests is not None:
            rates.append(self.requests)
        yield Text.assemble(
            (printable(f"{shown.chosen.model} {shown.chosen.version}"), "bold"),
            " · " + " · ".join([*rates, f"{moment(shown.now)[11:19]} UTC"]),
        )
        span = stretch(round(shown.seconds * 1000))
        counted = amount(shown.records, "record")
        if shown.errors:
            counted += f", {amount(shown.errors, 'error')}"
        compared = (
            "no baseline to compare with"
            if shown.baseline is None
            else f"baseline: {amount(shown.baseline.rows, 'row')} of {shown.baseline.source}"
        )
        if shown.live:
            yield Text(f"last {span}: {counted} · {compared}")
        else:
            age = ago(shown.now - shown.chosen.last)
            yield Text(
                f"the last record is {age} old: shown are the {span} before it, "
                f"to {moment(shown.chosen.last)[:19]} UTC: {counted} · {compared}",
                "yellow",
            )
        if self.drift is not None:
            style = "yellow" if self.drifted else "dim"
            yield Text(f"drift: {printable(self.drift)}", style)
        if shown.others:
            names = ", ".join(printable(f"{one.model} {one.version}") for one in shown.others)
            why = "" if self.asked else "shown is what has the latest record; "
            yield Text(f"{why}also in the log: {names}", "dim")


_SEVERITY: Final = {"fault": "bold red", "warning": "yellow", "note": ""}


def drift_words(moved: Sequence[LayerDrift]) -> str:
    """Return the drift alarm in words."""
    if not moved:
        return "too few rows to tell"
    rang = [one for one in moved if one.alarm]
    worst = max(moved, key=lambda one: one.worst.distance - one.worst.threshold)
    found = worst.worst
    where = f"{worst.key} ({found.statistic} {found.distance:.2f}, threshold {found.threshold:.2f})"
    if not rang:
        return f"no alarm in {amount(len(moved), 'layer')}; nearest: {where}"
    return f"ALARM in {len(rang)} of {amount(len(moved), 'layer')}; farthest: {where}"


def reasons(row: Row) -> str:
    """Return why a request is flagged, in words."""
    found = []
    if row.error is not None:
        found.append(f"error {row.error}")
    if row.non_finite is not None:
        found.append(f"first NaN or infinity in {row.non_finite}")
    if row.dead:
        found.append(f"all zeros in {amount(row.dead, 'layer')}")
    if row.flow:
        found.append(f"{amount(row.flow, 'gradient')} vanished or exploded")
    return "; ".join(found)


def footer(state: State) -> Text:
    """Return how far the log has been read, and what was no record."""
    parts = [amount(state.records, "record") + " in all"]
    if not state.complete:
        share = state.read_bytes / max(1, state.found_bytes)
        parts.append(f"reading: {share:.0%} of {size(state.found_bytes)}")
    skipped = sum(state.skipped.values())
    if skipped:
        why = ", ".join(f"{number:,} {reason}" for reason, number in state.skipped.items())
        parts.append(f"skipped {amount(skipped, 'line')} ({why})")
    if state.truncated:
        parts.append(f"a file was shortened {amount(state.truncated, 'time')}")
    if state.problem:
        parts.append(printable(state.problem))
    alarming = skipped or state.truncated or state.problem
    return Text(" · ".join(parts), "yellow" if alarming else "dim")


def waiting(path: Path, state: State, meant: str | None, others: Sequence[ModelSummary]) -> Group:
    """Return what is shown while the log has nothing of what is meant."""
    what = "a first record" if meant is None else f"a first record of {printable(meant)}"
    lines = [Text(f"waiting for {what} in {printable(str(path))}", "bold")]
    if others:
        names = ", ".join(printable(f"{one.model} {one.version}") for one in others)
        lines.append(Text(f"the log has: {names}"))
    else:
        lines.append(
            Text("a server writes one when VITRINE_ACTIVATION_LOG is asked or sampled", "dim")
        )
    return Group(*lines, footer(state))


def _request(row: Row) -> Text:
    return Text.assemble(
        (f"{moment(row.time)[5:23]} ", "dim"),
        printable(row.request_id) + " ",
        (printable(reasons(row)), "red"),
    )


def _wrapped(console: Console, text: Text, most: int | None) -> list[Text]:
    lines = list(text.wrap(console, console.width))
    if most is not None and len(lines) > most:
        last = lines[most - 1]
        last.append("…")
        lines = lines[:most]
    return lines


def _one_line(line: RenderableType) -> RenderableType:
    if isinstance(line, Text):
        line.no_wrap = True
        line.overflow = "ellipsis"
    return line
