"""A child process that leaves nothing behind: no grandchild, no zombie."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["ChildProcess", "reap"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
_SWEEP_SECONDS = 5.0
_GRACE_SECONDS = 2.0
# Children that a ChildProcess will ask for their status itself.
_tended: set[int] = set()


class ChildProcess:
    """A process in a session of its own, with its output handed on line by line.

    On Linux this process adopts whatever the child leaves behind, and the child is told to end
    should this process be killed outright.

    Args:
        command: What to run.
        environment: Its environment.
        directory: Its working folder.
        on_line: Called, from another thread, with each line of its output.
        pass_fds: File descriptors that it inherits, under the same numbers.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        on_line: Callable[[str], None],
        pass_fds: Sequence[int] = (),
    ) -> None:
        libc = ctypes.CDLL(None, use_errno=True) if _LINUX else None
        if libc is not None:
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

        def end_with_parent() -> None:
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=end_with_parent,  # noqa: PLW1509 (one system call, no lock)
        )
        _tended.add(self.pid)
        self._reader = threading.Thread(target=self._read, args=(on_line,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status if it has ended."""
        return self._process.poll()

    def ask(self, number: signal.Signals) -> None:
        """Send the child a signal, if it has not ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def stop(self, seconds: float, ask: signal.Signals = signal.SIGTERM) -> int:
        """End the child: asked first, SIGKILL after so many seconds; then all that it left.

        Args:
            seconds: How long it may take.
            ask: The signal that asks it to end.

        Returns:
            The child's exit status.
        """
        self.ask(ask)
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        _tended.discard(self.pid)
        self._sweep()
        self._reader.join(1)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()
        return status

    def _read(self, on_line: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            on_line(line.decode("utf-8", "replace").rstrip("\r\n"))

    def _sweep(self) -> None:
        started = time.monotonic()
        deadline = started + _SWEEP_SECONDS
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, signal.SIGKILL)
                group_left = True
            except (ProcessLookupError, PermissionError):
                group_left = False
            # Those in a session of their own have become ours. A log's writer is one of them: it
            # ends by itself as soon as it has written what was handed to it.
            # While other children run, an orphan may be at work for them.
            if not _tended and time.monotonic() - started > _GRACE_SECONDS:
                for pid in _orphans():
                    _kill(pid)
            orphans_left = reap() and not _tended
            if not orphans_left and not group_left:
                return
            time.sleep(0.02)


def reap() -> bool:
    """Wait for orphans that have ended.

    Returns:
        Whether some are left that run.
    """
    running = False
    for pid in _orphans():
        with suppress(ChildProcessError):
            running |= os.waitpid(pid, os.WNOHANG) == (0, 0)
    return running


def _orphans() -> set[int]:
    """The children that no ChildProcess started: they were left to us."""
    return _children() - _tended


def _children() -> set[int]:
    """Process ids whose parent is this process; only Linux makes orphans ours."""
    if not _LINUX:
        return set()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # pid (name) state ppid ...; the name may hold anything.
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except (OSError, IndexError, UnicodeDecodeError):
                continue
            if int(parent) == os.getpid():
                found.add(int(entry.name))
    return found


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
