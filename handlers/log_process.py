"""The writer's process, as a worker sees it: started, started again when it dies, ended."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from mmap import mmap
from pathlib import Path
from typing import Final

from handlers import log_writer
from handlers.settings import FileLimits

__all__ = ["WriterProcess"]

_CHANNEL_BYTES: Final = 2 << 20
_FIRST_DELAY_SECONDS: Final = 0.1
_LONGEST_DELAY_SECONDS: Final = 60.0


class WriterProcess:
    """The process that runs `handlers.log_writer`, and the channel to it.

    The channel is a pair of AF_UNIX sockets of type SOCK_SEQPACKET (Linux): it keeps messages
    apart, and what was sent stays readable when the sender is gone. The receiving end is held
    open here too, so that a writer that is started again finds what its predecessor left. The
    counters are a block of shared memory: reading them takes no system call.

    The process has a session of its own, so that no signal to the worker's group reaches it, and
    no file of the worker's but those that it needs: TorchServe reads a worker's output until
    the last owner closes it.

    Args:
        path: the file that is written.
        limits: when it is put aside.

    Raises:
        OSError: there is no such channel on this system, or no process can be started.
    """

    def __init__(self, path: Path, limits: FileLimits) -> None:
        self._path = path
        self._limits = limits
        self._closing = threading.Event()
        self._abandoned = False
        self._final: tuple[int, ...] | None = None
        with ExitStack() as stack:
            kind = socket.SOCK_SEQPACKET
            sender, receiver = socket.socketpair(socket.AF_UNIX, kind)
            self.channel = stack.enter_context(sender)
            self._receiver = stack.enter_context(receiver)
            sender.setblocking(False)
            # The kernel gives what net.core.wmem_max allows.
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHANNEL_BYTES)
            self.capacity: int = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            self._block = os.memfd_create("vitrine-activation-log")
            stack.callback(os.close, self._block)
            os.ftruncate(self._block, log_writer.COUNTER_BYTES)
            shared = stack.enter_context(mmap(self._block, log_writer.COUNTER_BYTES))
            self._counters = stack.enter_context(memoryview(shared).cast("Q"))
            self._program = stack.enter_context(Path(log_writer.__file__).open("rb", buffering=0))
            self._process: subprocess.Popen[bytes] | None = self._start()
            self._resources = stack.pop_all()
        self._watcher = threading.Thread(target=self._watch, name="activation-log", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int | None:
        """The writer's process id; None while there is none."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def counts(self) -> dict[str, int]:
        """What the writer has counted, by the names in `handlers.log_writer.COUNTERS`."""
        values = self._counters if self._final is None else self._final
        return dict(zip(log_writer.COUNTERS, values, strict=True))

    def close(self, seconds: float) -> None:
        """Close the channel, let the writer end, and leave nothing behind.

        Args:
            seconds: how long the writer may take to write what is in the channel; then it is
                killed.
        """
        self.channel.close()
        self._closing.set()
        self._watcher.join(seconds)
        if self._watcher.is_alive():
            self._abandoned = True
            while self._watcher.is_alive():
                if self._process is not None:
                    self._process.kill()
                self._watcher.join(0.1)
        self._final = tuple(self._counters)
        self._resources.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self._program.seek(0)
        inherited = (self._receiver.fileno(), self._block)
        return subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-"),
                *map(str, inherited),
                str(self.capacity),
                self._path,
                str(self._limits.max_bytes),
                str(self._limits.max_age_seconds),
                str(self._limits.keep),
                "private" if self._limits.private else "shared",
            ],
            stdin=self._program,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=inherited,
            start_new_session=True,
        )

    def _watch(self) -> None:
        delay = _FIRST_DELAY_SECONDS
        while True:
            last = self._closing.is_set()
            began = time.monotonic()
            status = self._process.wait() if self._process is not None else None
            if status == 0 or last or self._abandoned:
                return
            self._say(f"ended with status {status}" if status is not None else "cannot be started")
            if time.monotonic() - began > _LONGEST_DELAY_SECONDS:
                delay = _FIRST_DELAY_SECONDS
            # Cut short by close(), so that a last writer takes what is in the channel.
            self._closing.wait(delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
            try:
                self._process = self._start()
            except OSError:
                self._process = None

    def _say(self, what: str) -> None:
        line = f"vitrine: the writer of {self._path} {what}; starting it again"
        print(line, file=sys.stderr, flush=True)
