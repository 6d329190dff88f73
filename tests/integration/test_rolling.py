"""Two servers behind a balancer are restarted one after the other under load: nothing is lost."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress

import pytest
import requests

from tests.integration.conftest import running

if os.environ.get("VITRINE_URL"):
    pytest.skip("starts servers of its own", allow_module_level=True)
pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy to balance")
CLIENTS = 8
PAUSE = 0.02  # some hundred requests a second, all clients together
# As anybody would write it. A request is never sent twice: what a server loses is lost.
BALANCER = """
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    retries 3
    option redispatch
    retry-on conn-failure
frontend all
    bind 127.0.0.1:{port}
    default_backend servers
backend servers
    option httpchk GET /v2/health/ready
    default-server check inter 200ms fall 1 rise 1
    server one 127.0.0.1:{one}
    server two 127.0.0.1:{two}
"""


class Replica:
    """A server on ports of its own, which it has again after a restart."""

    def __init__(self, store, folder):
        folder.mkdir()
        self._store, self._folder = store, folder
        self._stack = ExitStack()
        self.port = free_ports()

    def __enter__(self):
        options = ("--port", str(self.port), "--front", "--grace-seconds", "2")
        self._stack.enter_context(running(self._store, self._folder, *options))
        return self

    def __exit__(self, *error):
        """SIGTERM; and the exit code is 0."""
        self._stack.close()

    def restart(self):
        self.__exit__()
        self.__enter__()


def free_ports():
    """Return the first of five ports, all of which are free."""
    while True:
        with ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with suppress(OSError, OverflowError):
                for number in range(port + 1, port + 5):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", number))
                return port


def wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Load:
    """Clients that keep their connections and ask all the time; and what became of it."""

    def __init__(self, url):
        self._url, self._stop = url, threading.Event()
        self.outcomes, self._lock = Counter(), threading.Lock()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]

    def _client(self):
        with requests.Session() as session:
            while not self._stop.wait(PAUSE):
                try:
                    answer = session.post(
                        f"{self._url}/predictions/branch", json=[1.0, 2.0, 3.0], timeout=30
                    )
                    outcome = answer.status_code
                except requests.RequestException as error:
                    outcome = repr(error)
                with self._lock:
                    self.outcomes[outcome] += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def up(url):
    with suppress(requests.RequestException):
        return requests.get(f"{url}/ping", timeout=5).ok
    return False


def test_no_request_is_lost_while_one_server_after_the_other_is_restarted(tmp_path, exported):
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(exported("branch").archive, store)
    with Replica(store, tmp_path / "one") as one, Replica(store, tmp_path / "two") as two:
        port = free_ports()
        config = tmp_path / "balancer.cfg"
        config.write_text(BALANCER.format(port=port, one=one.port, two=two.port))
        balancer = subprocess.Popen(["haproxy", "-db", "-f", str(config)])
        try:
            url = f"http://127.0.0.1:{port}"
            wait(lambda: up(url), 30)
            with Load(url) as load:
                for server in (one, two):
                    time.sleep(1)
                    server.restart()
                    # Both answer again before the other goes.
                    wait(lambda server=server: up(f"http://127.0.0.1:{server.port}"), 30)
                time.sleep(1)
        finally:
            balancer.terminate()
            balancer.wait(timeout=10)
    assert load.outcomes.keys() == {200}, load.outcomes
    assert load.outcomes[200] > 500
