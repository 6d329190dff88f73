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

__all__ = ["ChildProcess"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
_SWEEP_SECONDS = 5.0
_GRACE_SECONDS = 2.0


class ChildProcess:
    """A process in a session of its own, with its output handed on line by line.

    On Linux this process adopts whatever the child leaves behind, and the child is told to end
    should this process be killed outright.

    Args:
        command: What to run.
        environment: Its environment.
        directory: Its working folder.
        on_line: Called, from another thread, with each line of its output.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        on_line: Callable[[str], None],
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
            preexec_fn=end_with_parent,  # noqa: PLW1509 (no thread runs yet)
        )
        self._reader = threading.Thread(target=self._read, args=(on_line,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status if it has ended; orphans that have ended are reaped on the way."""
        status = self._process.poll()
        self._reap(skip=self.pid if status is None else None)
        return status

    def stop(self, seconds: float) -> int:
        """End the child: SIGTERM, then SIGKILL after so many seconds; then all that it left.

        Returns:
            The child's exit status.
        """
        if self._process.poll() is None:
            self._process.terminate()
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._sweep()
        self._reader.join(1)
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
            if time.monotonic() - started > _GRACE_SECONDS:
                for pid in _children():
                    _kill(pid)
            if not self._reap(skip=None) and not group_left:
                return
            time.sleep(0.02)

    def _reap(self, skip: int | None) -> bool:
        """Wait for children that have ended, except `skip`.

        Returns:
            Whether children are left that run.
        """
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            while ended := os.waitid(os.P_ALL, 0, flags):
                if ended.si_pid == skip:
                    return True  # Its status is for poll().
                os.waitpid(ended.si_pid, 0)
        except ChildProcessError:
            return False
        return True


def _children() -> list[int]:
    """Process ids whose parent is this process; only Linux makes orphans ours."""
    if not _LINUX:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # pid (name) state ppid ...; the name may hold anything.
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except (OSError, IndexError, UnicodeDecodeError):
                continue
            if int(parent) == os.getpid():
                found.append(int(entry.name))
    return found


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
