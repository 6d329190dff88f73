"""The run of a server: start, wait until every model is ready, serve, stop."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server import java, ports
from server.archives import Archive, examine
from server.config import Addresses, Config
from server.console import Console
from server.curl import curl_line
from server.errors import ServingError
from server.front import WITHOUT, Front, find_haproxy
from server.processes import Processes
from server.readiness import ModelState, NotListening, Restarts, answers_ready, model_state
from server.signals import StopSignals
from server.start import Run, start_front, start_services, start_torchserve
from server.state import State, prepare

__all__ = ["Options", "serve"]

#: A model whose worker died this often while it loaded is given up.
DEATHS_ALLOWED = 2
_POLL_SECONDS = 0.1
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
    """

    config: Path
    store: Path | None = None
    models: Sequence[str] | None = None
    port: int | None = None
    bind: str | None = None
    state: Path | None = None
    startup_timeout: float = 300.0
    front: bool | None = None


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
    if options.state is not None:
        prepare(options.state)
    addresses = ports.choose(config.addresses(), options.port, options.bind)
    ports.check_free(addresses)

    console = Console()
    for line in selection.left_out:
        console.line(f"Left out: {line}")
    if haproxy is None:
        console.line(WITHOUT)
    processes = Processes()
    with StopSignals() as stop, _scratch() as scratch:
        front = Front(haproxy, scratch, addresses) if haproxy is not None else None
        run = Run(config, store, archives, addresses, scratch, console)
        try:
            start_torchserve(processes, run, found_java, home, front)
            if front is not None:
                start_services(processes, run, front)
                start_front(processes, run, front)
            _wait_until_ready(
                processes,
                stop=stop,
                console=console,
                addresses=addresses,
                archives=archives,
                timeout=options.startup_timeout,
                front=front is not None,
            )
            if not stop.requested:
                _announce(addresses, archives, options.state)
            while not stop.wait(seconds=60):
                processes.check()
        finally:
            console.clear()
            if options.state is not None:
                options.state.unlink(missing_ok=True)
            if stop.requested:
                console.line("Stopping.")
            processes.stop()


def _wait_until_ready(
    processes: Processes,
    *,
    stop: StopSignals,
    console: Console,
    addresses: Addresses,
    archives: Sequence[Archive],
    timeout: float,
    front: bool,
) -> None:
    started = time.monotonic()
    names = sorted({archive.name for archive in archives})
    loading = dict.fromkeys(names, "waiting for TorchServe")
    restarts = Restarts()
    reported: tuple[list[str], float] = ([], -_REPORT_SECONDS)
    while loading and not stop.requested:
        elapsed = time.monotonic() - started
        if elapsed > timeout:
            raise ServingError(
                f"Not ready within {timeout:g} seconds: "
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
        processes.check()
        for name in pending:
            try:
                state = model_state(addresses.management_url, name)
            except NotListening:
                break
            _give_up_if_hopeless(state, restarts.note(state), archives)
            if state.problem is None:
                del loading[name]
            else:
                loading[name] = state.problem
        if not loading and front and not answers_ready(addresses.inference_url):
            loading = dict.fromkeys(names, "waiting for the front")
    console.clear()


def _give_up_if_hopeless(state: ModelState, deaths: int, archives: Sequence[Archive]) -> None:
    files = ", ".join(archive.path.name for archive in archives if archive.name == state.name)
    if not state.registered:
        # TorchServe takes in all archives before it listens.
        raise ServingError(
            f"TorchServe could not take in model {state.name!r} ({files}); lines above say why."
        )
    if not state.ready and deaths >= DEATHS_ALLOWED:
        raise ServingError(
            f"Model {state.name!r} ({files}) cannot be loaded: its worker died {deaths} times "
            "while loading it; lines above say why."
        )


def _announce(addresses: Addresses, archives: Sequence[Archive], state: Path | None) -> None:
    print(f"Ready: inference {addresses.inference_url}, management {addresses.management_url}, "
          f"metrics {addresses.metrics_url}/metrics")  # fmt: skip
    for archive in archives:
        print(f"\n{archive.name} {archive.version}")
        print(curl_line(addresses.inference_url, archive.name, archive.sample), flush=True)
    if state is not None:
        State(
            pid=os.getpid(),
            inference=addresses.inference_url,
            management=addresses.management_url,
            metrics=addresses.metrics_url,
            models=sorted({archive.name for archive in archives}),
        ).write(state)


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
