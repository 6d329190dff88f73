"""The metrics address: requests, models and TorchServe's own, as one text for Prometheus."""

import http.client
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from server.admin import Refused
from server.exposition import Family, gauge, write

__all__ = ["Part", "metrics_server", "metrics_text"]

#: Something that is asked at each scrape.
Part = Callable[[], Iterable[Family]]
_MEDIA: Final = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text(parts: dict[str, Part]) -> str:
    """Ask every part; one that fails is left out, and said to have failed."""
    families: list[Family] = []
    answered: dict[tuple[str, ...], float] = {}
    for name, part in parts.items():
        try:
            families += list(part())
            answered[name,] = 1
        except (OSError, ValueError, KeyError, http.client.HTTPException, Refused):
            answered[name,] = 0
    told = gauge(
        "vitrine_scrape_part_up",
        "Whether this part of the metrics could be asked.",
        ("part",),
        answered,
    )
    return write([*families, told])


def metrics_server(host: str, port: int, parts: dict[str, Part]) -> ThreadingHTTPServer:
    """Answer scrapes, in threads of their own.

    Raises:
        OSError: The address is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self._send(404, "nothing is here; /metrics has the metrics\n")
                return
            self._send(200, metrics_text(parts))

        do_HEAD = do_GET

        def _send(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", _MEDIA)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are no news."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
