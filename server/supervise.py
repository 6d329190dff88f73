"""The run of a server: start, wait until every model is ready, serve, drain, stop."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from server import java, ports
from server.announce import announce
from server.archives import Archive, Selection, examine
from server.condition import FAILED, READY
from server.config import Addresses, Config
from server.console import Console
from server.errors import ServingError, UsageError
from server.front import WITHOUT, Front, find_haproxy
from server.limits import ClientLimits, open_files
from server.options import Options
from server.processes import Processes
from server.readiness import answers_ready
from server.refresh import Refresh
from server.request_log import resolve
from server.signals import StopSignals
from server.start import Run, start_front, start_services, start_torchserve
from server.state import prepare
from server.tracing import check_tracing
from server.version_watch import Limits
from server.versions import NO_SHARE, Share, arranged, parse_share, read_defaults
from server.watched import Watched
from server.worker_lines import WorkerLines

__all__ = ["serve"]

_POLL_SECONDS = 0.1
_WATCH_SECONDS = 0.5
_REPORT_SECONDS = 10.0
# Sockets are made in it, SCRATCH/inference.sock the longest; HAProxy allows 97 characters.
_LONGEST_SCRATCH = 97 - len("/inference.sock")


@dataclass(frozen=True)
class _Plan:
    """What was found to be as it has to be before anything is started."""

    config: Config
    store: Path
    selection: Selection
    archives: list[Archive]
    java: java.Java
    home: Path
    haproxy: Path | None
    share: Share
    addresses: Addresses
    request_log: str


def serve(options: Options) -> None:
    """Serve until asked to stop.

    Raises:
        UsageError: Something has to be changed before a start can work.
        ServingError: A model cannot be loaded, or a process ended by itself.
    """
    plan = _plan(options)
    console = Console()
    for line in plan.selection.left_out:
        console.line(f"Left out: {line}")
    if plan.haproxy is None:
        console.line(WITHOUT)
    processes = Processes(console.line)
    with StopSignals() as stop, _scratch() as scratch:
        front = None
        if plan.haproxy is not None:
            front = Front(plan.haproxy, scratch, plan.addresses, options.access, plan.share)
        run = Run(
            config=plan.config,
            store=plan.store,
            archives=plan.archives,
            addresses=plan.addresses,
            scratch=scratch,
            console=console,
            condition=scratch / "condition.json",
            drain_seconds=options.drain_seconds,
            lines=WorkerLines(),
            request_log=plan.request_log,
        )
        limits = Limits(
            startup_seconds=options.startup_timeout, check_seconds=options.check_seconds
        )
        watched = Watched(
            run, plan.selection, processes, front, limits=limits, strict=options.strict
        )
        refresh = Refresh(front.sources() if front is not None else (), console.line)
        try:
            start_torchserve(processes, run, plan.java, plan.home, front)
            if front is not None:
                start_front(processes, run, front, start_services(processes, run, front))
                refresh.start()
            _wait_until_ready(watched, stop, options, front)
            if not stop.requested:
                curl = options.access.curl_options()
                announce(run, watched.serving(), state=options.state, curl=curl)
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


def _plan(options: Options) -> _Plan:
    config = Config.read(options.config)
    store = (options.store or config.model_store).resolve()
    selection = examine(store, options.models)
    if options.strict and selection.left_out:
        raise ServingError("; ".join(selection.left_out))
    archives = arranged(selection.archives, read_defaults(store), options.defaults)
    found_java, home = java.find_java(), java.torchserve_home()
    haproxy = find_haproxy(options.front)
    options.access.check(front=haproxy is not None)
    ClientLimits.read(config.settings, open_files()).check(front=haproxy is not None)
    share = NO_SHARE if options.share is None else parse_share(options.share, archives)
    if options.share is not None and haproxy is None:
        raise UsageError("--share needs the front; install HAProxy, or leave --no-front out.")
    request_log = resolve(options.request_log)
    check_tracing(os.environ)
    if options.state is not None:
        prepare(options.state)
    addresses = ports.choose(config.addresses(), options.port, options.bind)
    addresses = replace(addresses, tls=options.access.tls is not None)
    ports.check_free(addresses)
    return _Plan(
        config=config,
        store=store,
        selection=selection,
        archives=archives,
        java=found_java,
        home=home,
        haproxy=haproxy,
        share=share,
        addresses=addresses,
        request_log=request_log,
    )


def _wait_until_ready(
    watched: Watched, stop: StopSignals, options: Options, front: Front | None
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


def _drain(watched: Watched, processes: Processes, stop: StopSignals, options: Options) -> None:
    """Let whoever sends requests find out, then answer those that came, before anything ends.

    A SIGINT ends either at once; nobody at a terminal, and nobody who knows already, waits for the
    first.
    """
    told = watched.condition.ready and stop.numbers[0] == signal.SIGTERM
    grace = options.grace_seconds if told else 0.0
    watched.draining = True
    with suppress(ServingError):
        watched.look()
        _until(lambda: watched.look().live is False, grace, stop)
        processes.ask_last()
        _until(processes.last_ended, options.drain_seconds, stop)
    if stop.hurried:
        processes.hurry_last()


def _until(done: Callable[[], bool], seconds: float, stop: StopSignals) -> None:
    deadline = time.monotonic() + seconds
    while not stop.hurried and time.monotonic() < deadline and not done():
        time.sleep(_POLL_SECONDS)


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
