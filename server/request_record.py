"""One request as the front tells of it: its line becomes what is logged and counted."""

import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

import orjson

__all__ = ["Reader", "Unreadable"]

_MICRO: Final = 1_000_000
_TRACEPARENT: Final = re.compile(
    r"^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-|$)"
)
_NO_TRACE: Final = (None, None, False)
_MODEL_PATHS: Final = (
    (re.compile(r"^/predictions/([^/]+)(?:/([^/]+))?"), "predict"),
    (re.compile(r"^/explanations/([^/]+)(?:/([^/]+))?"), "explain"),
    (re.compile(r"^/v1/models/([^/:]+)()(?::predict)$"), "predict"),
    (re.compile(r"^/v1/models/([^/:]+)()(?::explain)$"), "explain"),
    (re.compile(r"^/v2/models/([^/]+)(?:/versions/([^/]+))?/infer$"), "predict"),
    (re.compile(r"^/models/([^/]+)(?:/([^/]+))?/invoke$"), "predict"),
    (re.compile(r"^/v[12]/models/([^/]+)(?:/versions/([^/]+))?(?:/ready)?$"), "status"),
)
_STATUS_PATH: Final = re.compile(r"^/(ping|health|v2/?|v2/health/.*|v1/models|openapi\.json)$")
_GRPC: Final = "/inference.GRPCInferenceService/"


class Unreadable(ValueError):
    """The line is not one of a request."""


class Reader:
    """Reads lines of the front (`log-format` in haproxy.cfg).

    Args:
        versions: The versions of each model that is served, by its name. A name that a client
            made up is in the path, and nowhere else.
    """

    def __init__(self, versions: Mapping[str, list[str]]) -> None:
        self._versions = versions
        self._second, self._written = 0, ""
        self._place = lru_cache(4096)(self._look)
        self._named = lru_cache(4096)(self._checked)

    def read(self, line: bytes) -> dict[str, Any]:
        """Read a line.

        Returns:
            What is logged: see docs/monitoring.md. Times are in milliseconds, `null` where they
            are not known. No value is longer than what the front lets through.

        Raises:
            Unreadable: It is not one of a request.
        """
        try:
            if line.startswith(b"[-"):
                # No request was understood; then HAProxy has no variables, nor their defaults.
                line = line.replace(b"[-,", b"[0,", 1).replace(b",-,", b",null,")
            (
                start, end, active, client, status, received, sent, ended, request_id,
                method, path, correlation, traceparent, told, code,
            ) = orjson.loads(line)  # fmt: skip
            start = start or end - 1000 * max(0, active)
            second, rest = divmod(start, _MICRO)
            if second != self._second:
                self._second = second
                self._written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            endpoint, model, version = self._place(path)
            error = code if code != "-" else None
            rows = batch = queued = began = ran = None
            if told is not None:
                # See formats.internal.RECORD; a gRPC call's also has the status that HTTP
                # would have.
                if len(told) > 8:
                    status = told.pop()
                *names, rows, batch, queued, began, ran, its_error = told
                model, version, its_error = self._named(*names, its_error, model, version)
                error = its_error or error
                if (
                    (rows is not None and rows < 0)
                    or (batch is not None and batch < 1)
                    or (ran is not None and batch is None)
                ):
                    raise ValueError("no number of rows or of requests")
            if status < 0:
                # No answer was sent: the client went away before.
                status, error = 499, error or "client_closed"
            trace, parent, sampled = _trace(traceparent) if traceparent != "-" else _NO_TRACE
            return {
                "time": f"{self._written}.{rest // 1000:03d}Z",
                "request_id": request_id if request_id != "-" else None,
                "correlation_id": correlation if correlation != "-" else None,
                "trace_id": trace,
                "parent_id": parent,
                "span_id": None,
                "sampled": sampled,
                "client": client,
                "method": method if method != "-" else None,
                "path": path if path != "-" else None,
                "endpoint": endpoint,
                "model": model,
                "version": version,
                "status": status,
                "error": error,
                "total_ms": (end - start) / 1000,
                "queued_ms": queued / 1000 if queued is not None else None,
                "began_ms": began / 1000 if began is not None else None,
                "run_ms": ran / 1000 if ran is not None else None,
                "batch": batch,
                "rows": rows,
                "bytes_in": received,
                "bytes_out": sent,
                "ended": ended,
            }
        except (ValueError, TypeError) as error:
            raise Unreadable(f"{error}: {line[:200]!r}") from None

    def _look(self, path: str) -> tuple[str, str | None, str | None]:
        """What a path asks for, and of which model and version, if they are served."""
        if path.startswith(_GRPC):
            return "grpc", None, None
        for pattern, endpoint in _MODEL_PATHS:
            found = pattern.match(path)
            if found is not None:
                return endpoint, *self._served(unquote(found[1]), unquote(found[2] or ""))
        return "status" if _STATUS_PATH.match(path) else "other", None, None

    def _served(self, name: str, version: str) -> tuple[str | None, str | None]:
        versions = self._versions.get(name)
        if versions is None:
            return None, None
        if version in versions:
            return name, version
        return name, versions[0] if len(versions) == 1 and not version else None

    def _checked(
        self, name: Any, version: Any, error: Any, model: str | None, own: str | None
    ) -> tuple[str | None, str | None, str | None]:
        """Model, version and error as a handler told them: somebody else's may say anything."""
        if not all(one is None or isinstance(one, str) for one in (name, version, error)):
            raise TypeError("a name that is none")
        if name not in self._versions:
            return model, own, error
        return name, version if version in self._versions[name] else own, error


def _trace(traceparent: str) -> tuple[str | None, str | None, bool]:
    """Trace id, the client's span id and whether it samples (W3C Trace Context)."""
    found = _TRACEPARENT.match(traceparent)
    if found is None or not int(found[2], 16) or not int(found[1], 16):
        return _NO_TRACE
    return found[1], found[2], bool(int(found[3], 16) & 1)
