"""OpenTelemetry: which requests become spans, and the process that exports them.

The environment variables are OpenTelemetry's own. Nothing is imported, started or kept where no
endpoint is named.
"""

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from server.errors import UsageError
from server.pipes import widen

__all__ = ["Sampler", "Tracing", "check_tracing", "tracing", "wanted"]

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PACKAGES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_SAMPLERS: Final = (
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
    "parentbased_traceidratio",
)  # fmt: skip
_CLOSE_SECONDS: Final = 3.0
_ROOT: Final = Path(__file__).resolve().parent.parent


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment names somewhere to send traces to, and does not forbid it."""
    return (
        any(environ.get(name) for name in _ENDPOINTS)
        and environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none"
    )


def check_tracing(environ: Mapping[str, str]) -> None:
    """Make sure that traces can be exported, where they are wanted.

    Raises:
        UsageError: A package is missing, or a variable has no value that is understood.
    """
    if not wanted(environ):
        return
    Sampler.from_environment(environ)
    for package in _PACKAGES:
        try:
            found = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise UsageError(
                f"An OTEL_EXPORTER_OTLP endpoint is set, and the package {package} is missing: "
                "install requirements/tracing.txt (scripts/bootstrap tracing), or unset it."
            )
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    if protocol != "http/protobuf":
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; traces are exported as http/protobuf."
        )


class Sampler:
    """Decides which requests become spans, as OpenTelemetry's own samplers of that name do.

    Args:
        name: One of OTEL_TRACES_SAMPLER.
        ratio: Which part of the traces, by their id; for the samplers that take one.
    """

    def __init__(self, name: str = "parentbased_always_on", ratio: float = 1.0) -> None:
        self._follows = name.startswith("parentbased_")
        kind = name.removeprefix("parentbased_")
        part = {"always_on": 1.0, "always_off": 0.0}.get(kind, ratio)
        self._below = round(part * (1 << 64))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Sampler":
        """Read OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG.

        Raises:
            UsageError: One of them is not understood.
        """
        name = environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
        if name not in _SAMPLERS:
            raise UsageError(
                f"OTEL_TRACES_SAMPLER is {name!r}; expected one of {', '.join(_SAMPLERS)}."
            )
        text = environ.get("OTEL_TRACES_SAMPLER_ARG") or "1"
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise UsageError(f"OTEL_TRACES_SAMPLER_ARG is {text!r}; expected a number from 0 to 1.")
        return cls(name, ratio)

    def samples(self, trace_id: str, parent_sampled: bool | None) -> bool:
        """Decide.

        Args:
            trace_id: 32 hexadecimal digits.
            parent_sampled: What the client's `traceparent` says; None where there is none.
        """
        if self._follows and parent_sampled is not None:
            return parent_sampled
        return int(trace_id[16:], 16) < self._below


class Tracing:
    """Hands sampled requests on to a process that exports them. Never waits for it.

    Args:
        sampler: Decides which.
        command: The process; it reads a line of JSON for each of them.
    """

    def __init__(self, sampler: Sampler, command: Sequence[str]) -> None:
        self.given = self.dropped = 0
        self._sampler = sampler
        # Identifiers, not secrets.
        self._random = random.Random()  # noqa: S311
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=_ROOT)
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        widen(self._pipe)
        self._left = b""

    def give(self, records: Sequence[dict[str, Any]]) -> None:
        """Sample requests; those that are sampled get a `span_id`, and a `trace_id` if need be."""
        for record in records:
            trace_id = record["trace_id"]
            parent = record["sampled"] if trace_id is not None else None
            trace_id = trace_id or f"{self._random.getrandbits(128) or 1:032x}"
            record["sampled"] = self._sampler.samples(trace_id, parent)
            if record["sampled"]:
                record["trace_id"] = trace_id
                record["span_id"] = f"{self._random.getrandbits(64) or 1:016x}"
                self._send(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Let what was handed on be exported, for a few seconds at most."""
        with suppress(OSError):
            os.set_blocking(self._pipe, True)
            os.write(self._pipe, self._left)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, line: bytes) -> None:
        """Write a line or the rest of the one before; a pipe takes a part of what is too long."""
        try:
            if self._left:
                self._left = self._left[os.write(self._pipe, self._left) :]
            if self._left:
                self.dropped += 1
                return
            self._left = line[os.write(self._pipe, line) :]
            self.given += 1
        except OSError:
            # Full, or nobody is there any more.
            self.dropped += 1


def tracing(environ: Mapping[str, str]) -> Tracing | None:
    """Start exporting, where the environment asks for it."""
    if not wanted(environ):
        return None
    command = [sys.executable, "-m", "server.trace_process"]
    return Tracing(Sampler.from_environment(environ), command)
