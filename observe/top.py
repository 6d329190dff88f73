"""`python -m observe top LOG`: a model's layers live in the terminal."""

import argparse
import io
import signal
import sys
import time
from types import FrameType

from rich.console import Console, RenderableType
from rich.live import Live

from formats.document import FormatError
from observe.baselines import Baselines
from observe.drift import LayerDrift, drift
from observe.findings import find
from observe.index import Index
from observe.options import add_log_arguments, open_log
from observe.queries import Window, models, units
from observe.reader import Reader
from observe.request_rate import RequestRate
from observe.screen import Screen, drift_words, waiting
from observe.snapshot import TREND, Snapshot, choose, take
from observe.terminal import printable

__all__ = ["add_arguments", "run"]

_ASKED_APART: float = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_log_arguments(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="which model (default: that of the latest record)"
    )
    parser.add_argument(
        "--version", metavar="V", help="which version (default: that of the latest record)"
    )
    parser.add_argument(
        "--window",
        type=_positive,
        default=60.0,
        metavar="SECONDS",
        help="how far back it looks (default: 60)",
    )
    parser.add_argument(
        "--every",
        type=_positive,
        default=1.0,
        metavar="SECONDS",
        help="how often it looks (default: 1)",
    )
    parser.add_argument("--once", action="store_true", help="print it once and end")
    parser.add_argument(
        "--metrics",
        metavar="URL",
        help="the server's metrics, for requests per second: http://127.0.0.1:8082/metrics",
    )


def run(options: argparse.Namespace) -> int:
    """Show a log until Ctrl-C; once, where the output is no terminal or `--once` is given.

    Raises:
        FormatError: there is no such log, or nothing in it of what is asked for.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows ASCII only shows question marks instead of blocks.
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False, markup=False, emoji=False)
    rate = None if options.metrics is None else RequestRate(options.metrics)
    reader, index, baselines = open_log(options)
    shown = _Shown(options, reader, index, baselines, rate)
    try:
        if options.once or not console.is_terminal:
            return _once(console, shown)
        return _live(console, shown)
    finally:
        reader.close()
        index.close()


class _Shown:
    def __init__(
        self,
        options: argparse.Namespace,
        reader: Reader,
        index: Index,
        baselines: Baselines,
        rate: RequestRate | None,
    ) -> None:
        self.options = options
        self.reader = reader
        self.rate = rate
        self._index = index
        self._baselines = baselines

    def screen(self) -> Screen | None:
        """Look; None where the log has nothing of what is meant."""
        snapshot = take(
            self._index,
            self._baselines,
            now=time.time_ns() // 1_000_000,
            seconds=self.options.window,
            model=self.options.model,
            version=self.options.version,
        )
        if snapshot is None:
            return None
        requests = None
        if self.rate is not None:
            found = self.rate.of(snapshot.chosen.model)
            requests = (
                f"requests/s unknown: {printable(self.rate.problem)}"
                if self.rate.problem
                else "requests/s: asking"
                if found is None
                else f"{found:.1f} requests/s"
            )
        moved = self._moved(snapshot)
        return Screen(
            snapshot,
            self.reader.state(),
            bool(self.options.model or self.options.version),
            requests,
            findings=self._findings(snapshot),
            units=self._units(snapshot),
            drift=None if moved is None else drift_words(moved),
            drifted=frozenset(one.key for one in moved or () if one.alarm),
        )

    def _findings(self, snapshot: Snapshot) -> list[tuple[str, str]]:
        found = find(self._index, snapshot.window, snapshot.baseline)
        return [(one.severity, one.text) for one in found]

    def _moved(self, snapshot: Snapshot) -> list[LayerDrift] | None:
        if snapshot.baseline is None:
            return None
        return drift(self._index, snapshot.window, snapshot.baseline)

    def _units(self, snapshot: Snapshot) -> dict[str, str]:
        """Return how many units of each layer never fired; over all that the trends show."""
        shown = snapshot.window
        assert shown.until is not None
        since = shown.until - TREND * round(snapshot.seconds * 1000)
        window = Window(shown.model, shown.version, since, shown.until)
        return {
            one.key: "?" if one.dead is None else f"{len(one.dead)}/{one.units}"
            for one in units(self._index, window)
        }

    def wait(self) -> RenderableType:
        """Say that nothing is there yet."""
        options = self.options
        meant = " ".join(part for part in (options.model, options.version) if part) or None
        return waiting(options.log, self.reader.state(), meant, models(self._index))

    def missing(self) -> FormatError | None:
        """Return what is wrong where something else is in the log than what is meant."""
        found = models(self._index)
        options = self.options
        if not found or choose(found, options.model, options.version):
            return None
        names = ", ".join(printable(f"{one.model} {one.version}") for one in found)
        asked = " ".join(part for part in (options.model, options.version) if part)
        return FormatError(f"{options.log} has nothing of {printable(asked)}; it has: {names}")


def _once(console: Console, shown: _Shown) -> int:
    shown.reader.read_all()
    missing = shown.missing()
    if missing is not None:
        raise missing
    if shown.rate is not None:
        shown.rate.ask()
        time.sleep(_ASKED_APART)
        shown.rate.ask()
    screen = shown.screen()
    console.print(shown.wait() if screen is None else screen.render(console, None))
    return 0


def _live(console: Console, shown: _Shown) -> int:
    signal.signal(signal.SIGTERM, _end)
    every = shown.options.every
    shown.reader.start(min(0.5, every))
    if shown.rate is not None:
        shown.rate.start(every)
    try:
        # Whatever was in the terminal before is there again afterwards.
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                screen = shown.screen()
                live.update(
                    shown.wait() if screen is None else screen.render(console, console.height),
                    refresh=True,
                )
                time.sleep(every)
    except KeyboardInterrupt:
        return 0


def _end(_signal: int, _frame: FrameType | None) -> None:
    # The terminal has to be given back as it was.
    raise KeyboardInterrupt


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value
