"""How each process of a run is started: TorchServe, the status service, the front."""

import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from server import java, java_cache, java_native
from server.archives import Archive
from server.config import Addresses, Config
from server.console import Console
from server.front import Front, patience
from server.pipes import widen
from server.process import ChildProcess
from server.processes import Processes
from server.request_log import OFF, STDOUT
from server.settings import Settings
from server.worker_lines import WorkerLines
from server.workers import machine, model_settings, workers_of

__all__ = ["Run", "start_front", "start_services", "start_torchserve"]

_ROOT = Path(__file__).resolve().parent.parent
# Seconds that each may take to end before it is killed; the front has its own limit.
_STOP_SECONDS = 30.0
_SERVICE_STOP_SECONDS = 2.0
# On top of what requests in flight have.
_FRONT_STOP_SECONDS = 2.0
# It may have lines to write and spans to export.
_OBSERVER_STOP_SECONDS = 5.0
# What they print past their logs: said better here, said too early, or no news.
_NOISE = re.compile(
    r"Model server started\."
    r"|nvidia-smi not available or failed"
    r"|WARNING: sun\.reflect\.Reflection\.getCallerClass is not supported"
    r"|\[NOTICE\]"
    r"|\[WARNING\].* stopped \(cumulated conns"
)


@dataclass(frozen=True)
class Run:
    """What all processes of a run share.

    Attributes:
        config: The configuration.
        store: The model store.
        archives: Those that are served.
        addresses: Where the server listens.
        scratch: A folder that is gone afterwards.
        console: Where they may print.
        condition: The file of the server's condition.
        drain_seconds: What requests in flight have, once a stop was asked for.
        lines: Remembers what workers print.
        request_log: "off", "stdout" or a file.
    """

    config: Config
    store: Path
    archives: Sequence[Archive]
    addresses: Addresses
    scratch: Path
    console: Console
    condition: Path
    drain_seconds: int
    lines: WorkerLines
    request_log: str = OFF

    def print(self, line: str) -> None:
        """Show a line that a process printed, unless it is no news."""
        self.lines.note(line)
        if not _NOISE.match(line):
            self.console.line(line)


def start_torchserve(
    processes: Processes, run: Run, found_java: java.Java, home: Path, front: Front | None
) -> None:
    """Start TorchServe, behind the front if there is one.

    Args:
        processes: Where to add it.
        run: The run.
        found_java: The Java to run it with.
        home: The folder that holds its `ts` package.
        front: What listens on the public address in its place.
    """
    config = run.scratch / "config.properties"
    overrides = run.addresses.overrides() | (front.overrides() if front else {})
    if "models" not in run.config.settings:
        workers = workers_of(run.archives, machine())
        for one in workers:
            run.console.line(str(one))
        if workers:
            overrides["models"] = json.dumps(model_settings(workers))
    config.write_text(run.config.merged(overrides), encoding="utf-8")
    child = ChildProcess(
        java.command(
            found_java,
            home=home,
            config=config,
            store=run.store,
            archives=[archive.path.name for archive in run.archives],
            scratch=run.scratch,
            vmargs=run.config.settings.get("vmargs", ""),
            flags=[*java_cache.flags(found_java, home), *java_native.flags()],
        ),
        environment=java.environment(run.scratch, run.config.settings),
        directory=run.config.path.parent,
        on_line=run.print,
    )
    processes.add("TorchServe", child, _STOP_SECONDS)


def start_services(processes: Processes, run: Run, front: Front) -> int:
    """Start what logs and counts requests, and the services that only the front reaches.

    Returns:
        The file descriptor that takes a line about each request; to be closed once the front
        has it.
    """
    settings = run.scratch / "status.json"
    Settings(
        socket=str(front.status_socket),
        condition=str(run.condition),
        management=run.addresses.management_url,
        archives=[str(archive.path) for archive in run.archives],
        max_body=run.config.max_body,
        grpc_socket=str(front.grpc_socket),
        front=str(front.own_socket),
        patience=patience(run.config),
        keys=front.access.keys is not None,
        metrics=f"{run.addresses.local}:{run.addresses.metrics}",
        torchserve_metrics=str(front.metrics_socket),
        admin=str(front.admin_socket),
        request_log=run.request_log,
    ).write(settings)
    lines, requests = os.pipe()
    # Seconds of full load.
    widen(requests)
    # The pipe's end stays open here, for another reader should one die.
    observer = partial(_start_observer, run, settings, lines)
    processes.add("The request log", observer(), _OBSERVER_STOP_SECONDS, again=observer)
    for name, service, listens in (
        ("status", "server.status", front.status_socket),
        ("gRPC", "server.grpc_process", front.grpc_socket),
    ):
        start = partial(
            _start_service, run, [sys.executable, "-m", service, str(settings)], listens
        )
        processes.add(f"The {name} service", start(), _SERVICE_STOP_SECONDS, again=start)
    return requests


def _start_service(run: Run, command: Sequence[str], listens: Path) -> ChildProcess:
    # One that was killed leaves its socket behind.
    listens.unlink(missing_ok=True)
    return ChildProcess(command, environment=os.environ, directory=_ROOT, on_line=run.print)


def _start_observer(run: Run, settings: Path, lines: int) -> ChildProcess:
    """Start what reads the front's lines; it ends after the front, and so misses none."""
    # The log goes to this process's own standard output, not through it.
    output = [os.dup(1)] if run.request_log == STDOUT else []
    passed = [lines, *output]
    try:
        return ChildProcess(
            [sys.executable, "-m", "server.observe", str(settings), *map(str, passed)],
            environment=os.environ,
            directory=_ROOT,
            on_line=run.print,
            pass_fds=passed,
        )
    finally:
        for number in output:
            os.close(number)


def start_front(processes: Processes, run: Run, front: Front, requests: int) -> None:
    """Start HAProxy; told to end, it first lets requests in flight be answered.

    Args:
        processes: Where to add it.
        run: The run.
        front: The front.
        requests: What `start_services` returned.
    """
    front.prepare()
    child = ChildProcess(
        front.command(),
        environment=front.environment(run.config, run.drain_seconds, requests=requests),
        directory=run.scratch,
        on_line=run.print,
        pass_fds=(requests,),
    )
    os.close(requests)
    seconds = run.drain_seconds + _FRONT_STOP_SECONDS
    processes.add("The front (HAProxy)", child, seconds, signal.SIGUSR1)
