"""A server that does nothing: what the load generator can do at most."""

import json
import shutil
from typing import Final

import numpy as np

from benchmarks.serving.forms import Form, plain_json
from benchmarks.serving.prepared import Prepared
from benchmarks.serving.running import Launch, NotRun, free_ports
from benchmarks.serving.work import Floats, Work

__all__ = ["encode", "expected", "launch"]

_CONFIG: Final = """\
global
    nbthread 1
    # An answer of a thousand numbers has to fit.
    tune.bufsize 65536
defaults
    mode http
    timeout client 30s
    timeout connect 5s
    timeout server 30s
    timeout http-keep-alive 75s
frontend trivial
    bind 127.0.0.1:{port}
    http-request return status 200 content-type application/json file "{answer}"
"""


def encode(work: Work, inputs: Floats) -> Form:
    """Send what a server of JSON would get; an image is too large for HAProxy's buffer."""
    rows = np.zeros((len(inputs), 16), np.float32) if work.binary else inputs
    return plain_json("/", '"outputs":')(work, rows)


def expected(cases: Floats) -> Floats:
    """Return the answers, float32 [rows, outputs]: all are the first."""
    return np.repeat(cases[:1], len(cases), axis=0)


def launch(prepared: Prepared, workers: int) -> Launch:
    """Say how to start it.

    Raises:
        NotRun: HAProxy is not installed.
    """
    del workers
    found = shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin")
    if found is None:
        raise NotRun("haproxy is not installed")
    folder = prepared.folder("haproxy")
    (port,) = free_ports(1)
    answer, config = folder / "answer.json", folder / "haproxy.cfg"
    numbers = prepared.cases.expected[0].tolist()
    answer.write_text(json.dumps({"outputs": numbers}), encoding="utf-8")
    config.write_text(_CONFIG.format(port=port, answer=answer), encoding="utf-8")
    return Launch([found, "-db", "-f", str(config)], folder, {}, lambda: f"127.0.0.1:{port}")
