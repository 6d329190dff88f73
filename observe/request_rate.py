"""Requests per second, from the counter that a server publishes for Prometheus."""

import re
import threading
import time
from collections import deque
from typing import Final
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from formats.document import FormatError

__all__ = ["RequestRate", "requests_by_model"]

_COUNTERS: Final = {
    "vitrine_requests_total": "model",
    # Where no front stands before TorchServe.
    "ts_inference_requests_total": "model_name",
}
_LINE: Final = re.compile(r"(?P<name>\w+)\{(?P<labels>.*)\}\s+(?P<value>\S+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_MOST_BYTES: Final = 32 << 20
_TIMEOUT: Final = 3.0


def requests_by_model(text: str) -> dict[str, float]:
    """Return how many requests a server answered, by model, from its metrics' text."""
    found: dict[str, dict[str, float]] = {name: {} for name in _COUNTERS}
    for line in text.splitlines():
        if not line.startswith(tuple(_COUNTERS)):
            continue
        match = _LINE.match(line)
        if match is None or match["name"] not in _COUNTERS:
            continue
        labels = dict(_LABEL.findall(match["labels"]))
        model = _unescaped(labels.get(_COUNTERS[match["name"]], ""))
        try:
            value = float(match["value"])
        except ValueError:
            continue
        counts = found[match["name"]]
        counts[model] = counts.get(model, 0.0) + value
    return next((counts for counts in found.values() if counts), {})


class RequestRate:
    """Asks a server's metrics again and again, and says how fast its counter rises.

    Args:
        url: of the metrics, e.g. "http://127.0.0.1:8082/metrics".
        span: seconds that a rate is taken over.

    Attributes:
        problem: why there is no answer, or None.

    Raises:
        FormatError: `url` is no HTTP address.
    """

    def __init__(self, url: str, span: float = 15.0) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise FormatError(f"{url} is no address; expected http://HOST:PORT/metrics")
        self._url = url
        self._span = span
        self._seen: deque[tuple[float, dict[str, float]]] = deque()
        self._stop = threading.Event()
        self.problem: str | None = None

    def start(self, every: float = 1.0) -> None:
        """Ask every `every` seconds, in a thread."""
        threading.Thread(target=self._run, args=(max(0.2, every),), daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()

    def ask(self) -> None:
        """Ask once; what goes wrong is in `problem`."""
        try:
            request = Request(self._url, headers={"Accept": "text/plain"})  # noqa: S310
            with urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
                text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            self.problem = f"{self._url}: {reason}"
            self._seen.clear()
            return
        self.add(time.monotonic(), requests_by_model(text))

    def add(self, now: float, counts: dict[str, float]) -> None:
        """Take in what the counters say at a time, in seconds of any clock."""
        self.problem = None if counts else f"{self._url} counts no requests yet"
        last = self._seen[-1][1] if self._seen else {}
        if any(counts.get(model, 0.0) < count for model, count in last.items()):
            self._seen.clear()  # The server began anew.
        self._seen.append((now, counts))
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._span:
            self._seen.popleft()

    def of(self, model: str) -> float | None:
        """Return requests per second of a model; None until two answers were had."""
        seen = list(self._seen)
        if len(seen) < 2:
            return None
        (began, first), (ended, last) = seen[0], seen[-1]
        return (last.get(model, 0.0) - first.get(model, 0.0)) / max(1e-9, ended - began)

    def _run(self, every: float) -> None:
        self.ask()
        while not self._stop.wait(every):
            self.ask()


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), text)
