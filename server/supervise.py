"""The run of a server: start, wait until every model is ready, serve, drain, stop."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from server import java, ports
from server.access import Access
from server.archives import Archive, Selection, examine
from server.condition import FAILED, READY, Condition
from server.config import Config
from server.console import Console
from server.curl import curl_line
from server.errors import ServingError
from server.front import WITHOUT, Front, find_haproxy
from server.limits import ClientLimits, open_files
from server.marks import DRAINING, Marks, failed
from server.monitor import Monitor
from server.processes import Processes
from server.readiness import answers_ready
from server.refresh import Refresh
from server.sample_request import Target, try_model
from server.signals import StopSignals
from server.start import Run, start_front, start_services, start_torchserve
from server.state import State, prepare
from server.version_watch import Limits
from server.worker_lines import WorkerLines

__all__ = ["Options", "serve"]

_POLL_SECONDS = 0.1
_WATCH_SECONDS = 0.5
_REPORT_SECONDS = 10.0
# A worker's socket is SCRATCH/.ts.sock.PORT; Linux allows 107 characters.
_LONGEST_SCRATCH = 90


@dataclass(frozen=True)
class Options:
    """What to serve, and where.

    Attributes:
        config: The configuration file.
        store: The model store; None for the configuration's.
        models: Names of the models to serve; None for all of the store.
        port: See `ports.choose`.
        bind: Address of the inference API; None for the configuration's.
        state: The file to write when ready, if any.
        startup_timeout: Seconds within which every model has to be ready.
        front: Whether HAProxy stands before TorchServe; None for where it is installed.
        strict: Whether a model that cannot be served ends the others.
        grace_seconds: How long a server that was told to stop still takes requests.
        drain_seconds: How long it then has for those that it took.
        check_seconds: How long after a sample request a model is sent the next.
        access: Who may ask, and whether the front speaks TLS.
    """

    config: Path
    store: Path | None = None
    models: Sequence[str] | None = None
    port: int | None = None
    bind: str | None = None
    state: Path | None = None
    startup_timeout: float = 300.0
    front: bool | None = None
    strict: bool = False
    grace_seconds: float = 3.0
    drain_seconds: int = 30
    check_seconds: float = 300.0
    access: Access = field(default_factory=Access)


def serve(options: Options) -> None:
    """Serve until asked to stop.

    Raises:
        UsageError: Something has to be changed before a start can work.
        ServingError: A model cannot be loaded, or a process ended by itself.
    """
    config = Config.read(options.config)
    store = (options.store or config.model_store).resolve()
    selection = examine(store, options.models)
    archives = selection.archives
    found_java, home = java.find_java(), java.torchserve_home()
    haproxy = find_haproxy(options.front)
    access = options.access
    access.check(front=haproxy is not None)
    ClientLimits.read(config.settings, open_files()).check(front=haproxy is not None)
    if options.state is not None:
        prepare(options.state)
    addresses = ports.choose(config.addresses(), options.port, options.bind)
    addresses = replace(addresses, tls=access.tls is not None)
    ports.check_free(addresses)

    console = Console()
    for line in selection.left_out:
        console.line(f"Left out: {line}")
    if haproxy is None:
        console.line(WITHOUT)
    processes = Processes(console.line)
    with StopSignals() as stop, _scratch() as scratch:
        front = Front(haproxy, scratch, addresses, access) if haproxy is not None else None
        run = Run(
            config=config,
            store=store,
            archives=archives,
            addresses=addresses,
            scratch=scratch,
            console=console,
            condition=scratch / "condition.json",
            drain_seconds=options.drain_seconds,
            lines=WorkerLines(),
        )
        watched = _Watched(options, run, selection, processes, front)
        refresh = Refresh(front.sources() if front is not None else (), console.line)
        try:
            start_torchserve(processes, run, found_java, home, front)
            if front is not None:
                start_services(processes, run, front)
                start_front(processes, run, front)
                refresh.start()
            _wait_until_ready(watched, stop, options, front)
            if not stop.requested:
                _announce(run, watched, options)
            while not stop.wait(_WATCH_SECONDS if watched.condition.ready else _POLL_SECONDS):
                watched.look()
        finally:
            console.clear()
            if options.state is not None:
                options.state.unlink(missing_ok=True)
            if stop.requested:
                console.line("Stopping.")
                if front is not None:
                    _drain(watched, processes, stop, options)
            refresh.stop()
            processes.stop()


class _Watched:
    """The condition of a run, kept up to date for all who ask."""

    def __init__(
        self,
        options: Options,
        run: Run,
        selection: Selection,
        processes: Processes,
        front: Front | None,
    ) -> None:
        addresses = run.addresses
        host = addresses.ports["inference"][0]
        target = (
            Target(front.inference_socket) if front else Target(None, host, addresses.inference)
        )
        self.run = run
        self.draining = False
        self.condition = Condition()
        self._options, self._processes = options, processes
        left_out = zip(selection.lost, selection.left_out, strict=True)
        self._left_out = {f"model {name}": line for name, line in left_out}
        served = {archive.name for archive in run.archives}
        self._lost = {failed(name) for name in selection.lost if name not in served}
        self._marks = Marks(front.admin_socket, front.marks_file) if front else None
        self._monitor = Monitor(
            addresses.management_url,
            run.archives,
            check=lambda archive: try_model(target, archive, run.config.model_seconds),
            lines=run.lines,
            limits=Limits(
                startup_seconds=options.startup_timeout, check_seconds=options.check_seconds
            ),
            say=run.console.line,
        )
        self.condition.write(run.condition)

    def look(self) -> Condition:
        """Look at everything once, and tell.

        Raises:
            ServingError: A process ended, or no model is left that can be served; or one cannot be
                where all have to be.
        """
        self._processes.check()
        parts = self._left_out | self._processes.problems
        condition = self._monitor.look(draining=self.draining, parts=parts)
        if condition != self.condition:
            condition.write(self.run.condition)
            self.condition = condition
        os.utime(self.run.condition)
        lost = [one for one in condition.models if one.state == FAILED]
        if self._marks is not None:
            self._marks.set(self._marked([(one.name, one.version) for one in lost]))
        if lost and (self._options.strict or len(lost) == len(condition.models)):
            raise ServingError("; ".join(self._said(one.name, one.problem) for one in lost))
        return condition

    def serves(self, archive: Archive) -> bool:
        """Whether a model was not given up."""
        return (archive.name, archive.version) not in {
            (one.name, one.version) for one in self.condition.models if one.state == FAILED
        }

    def _marked(self, lost: Sequence[tuple[str, str]]) -> set[str]:
        found = {failed(name, version) for name, version in lost}
        # Without a version, the one that TorchServe took in first is meant.
        defaults = {one.name: one.version for one in reversed(self.run.archives)}
        found |= {failed(name) for name, version in lost if defaults[name] == version}
        return self._lost | found | ({DRAINING} if self.draining else set())

    def _said(self, name: str, problem: str | None) -> str:
        files = ", ".join(one.path.name for one in self.run.archives if one.name == name)
        return f"Model {name!r} ({files}) cannot be served: {problem}; lines above say why."


def _wait_until_ready(
    watched: _Watched, stop: StopSignals, options: Options, front: Front | None
) -> None:
    started = time.monotonic()
    console = watched.run.console
    names = sorted({archive.name for archive in watched.run.archives})
    reported: tuple[list[str], float] = ([], -_REPORT_SECONDS)
    while not stop.requested:
        condition = watched.look()
        moving = [one for one in condition.models if one.state not in (READY, FAILED)]
        loading = dict.fromkeys(names, "waiting for TorchServe")
        if condition.live:
            loading = {one.name: one.problem or one.state for one in moving}
            if not loading and front is not None and not answers_ready(front.own_socket):
                loading = dict.fromkeys(names, "waiting for the front")
        if not loading:
            break
        elapsed = time.monotonic() - started
        # Once TorchServe listens, a model that takes too long is given up by itself.
        if elapsed > options.startup_timeout and not (condition.live and moving):
            raise ServingError(
                f"Not ready within {options.startup_timeout:g} seconds: "
                + ", ".join(f"{name} ({why})" for name, why in loading.items())
                + ". Lines above may say why; --startup-timeout gives more time."
            )
        pending = list(loading)
        if console.terminal or pending != reported[0] or elapsed - reported[1] >= _REPORT_SECONDS:
            console.status(
                f"Loading {', '.join(pending)}: "
                f"{len(names) - len(pending)} of {len(names)} ready, {elapsed:.0f} s"
            )
            reported = (pending, elapsed)
        stop.wait(_POLL_SECONDS)
    console.clear()


def _drain(watched: _Watched, processes: Processes, stop: StopSignals, options: Options) -> None:
    """Let whoever sends requests find out, then answer those that came, before anything ends.

    A second signal ends either at once; nobody at a terminal, and nobody who knows already, waits
    for the first.
    """
    told = watched.condition.ready and stop.numbers[0] == signal.SIGTERM
    grace = options.grace_seconds if told else 0.0
    watched.draining = True
    with suppress(ServingError):
        watched.look()
        _until(lambda: watched.look() is None, grace, stop)
        processes.ask_last()
        _until(processes.last_ended, options.drain_seconds, stop)


def _until(done: Callable[[], bool], seconds: float, stop: StopSignals) -> None:
    deadline = time.monotonic() + seconds
    while len(stop.numbers) < 2 and time.monotonic() < deadline and not done():
        time.sleep(_POLL_SECONDS)


def _announce(run: Run, watched: _Watched, options: Options) -> None:
    addresses = run.addresses
    archives = [archive for archive in run.archives if watched.serves(archive)]
    print(f"Ready: inference {addresses.inference_url}, management {addresses.management_url}, "
          f"metrics {addresses.metrics_url}/metrics")  # fmt: skip
    for archive in archives:
        print(f"\n{archive.name} {archive.version}")
        line = curl_line(
            addresses.inference_url, archive.name, archive.sample, options.access.curl_options()
        )
        print(line, flush=True)
    if options.state is not None:
        State(
            pid=os.getpid(),
            inference=addresses.inference_url,
            management=addresses.management_url,
            metrics=addresses.metrics_url,
            models=sorted({archive.name for archive in archives}),
            condition=str(run.condition),
        ).write(options.state)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for this run: TorchServe unpacks archives and makes sockets in it."""
    folder = tempfile.mkdtemp(prefix="vitrine-")
    if len(folder) > _LONGEST_SCRATCH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="vitrine-", dir="/tmp")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
