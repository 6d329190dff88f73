"""TorchServe's metrics under names that Prometheus recommends, from the socket behind the front.

TorchServe writes `QueueTime{Level="Host",}` in milliseconds; here it is
`torchserve_queue_time_seconds{level="Host"}`. What handlers count keeps its name.
"""

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Final

from server.exposition import Family, sample
from server.unix_http import UnixConnection

__all__ = ["torchserve_families", "torchserve_metrics"]

_TIMEOUT = 2.0
_LONGEST = 10_000_000
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_UNIT: Final = re.compile(r"unit: (\w+)")
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z0-9])")
_ESCAPED: Final = re.compile(r'\\([\\"n])')
# Factor and name of the base unit, by what TorchServe calls the unit.
_BASE: Final = {
    "Milliseconds": (1e-3, "seconds"),
    "ms": (1e-3, "seconds"),
    "Microseconds": (1e-6, "seconds"),
    "Megabytes": (1e6, "bytes"),
    "Gigabytes": (1e9, "bytes"),
}
_LABELS: Final = {"model_name": "model", "model_version": "version"}


def torchserve_metrics(path: str) -> Iterator[Family]:
    """Ask TorchServe.

    Args:
        path: The socket of its metrics.

    Raises:
        OSError, http.client.HTTPException: It does not answer.
    """
    with closing(UnixConnection(path, _TIMEOUT)) as connection:
        connection.request("GET", "/metrics", headers={"Connection": "close"})
        text = connection.getresponse().read(_LONGEST).decode("utf-8", "replace")
    return torchserve_families(text)


def torchserve_families(text: str) -> Iterator[Family]:
    """Read TorchServe's text and name it anew; a metric without samples is left out."""
    texts: dict[str, str] = {}
    family: Family | None = None
    factor = 1.0
    for line in text.splitlines():
        _, _, rest = line.partition(" ")
        if line.startswith("# HELP "):
            name, _, texts[name] = rest.removeprefix("HELP ").partition(" ")
        elif line.startswith("# TYPE "):
            if family is not None and family.lines:
                yield family
            name, _, kind = rest.removeprefix("TYPE ").partition(" ")
            factor, own = _renamed(name, kind, texts.get(name, ""))
            family = Family(own, kind, texts.get(name) or "Of a handler.")
        elif family is not None and (found := _SAMPLE.match(line)) is not None:
            family.lines.append(sample(family.name, _labels(found[2]), factor * float(found[3])))
    if family is not None and family.lines:
        yield family


def _renamed(name: str, kind: str, text: str) -> tuple[float, str]:
    """By what to multiply, and the name to use."""
    unit = _UNIT.search(text)
    factor, base = _BASE.get(unit[1] if unit is not None else "", (1.0, ""))
    words = _snake(name).removesuffix("_total").removeprefix("ts_")
    words = re.sub(r"_(milliseconds|microseconds|megabytes|gigabytes)$", "", words)
    if not name.startswith("vitrine_"):
        words = f"torchserve_{words}"
    parts = [words, base, "total" if kind == "counter" else ""]
    return factor, "_".join(part for part in parts if part)


def _snake(name: str) -> str:
    return _CAMEL.sub("_", name).lower()


def _labels(text: str | None) -> dict[str, str]:
    found = {}
    for name, value in _LABEL.findall(text or ""):
        snake = _snake(name)
        found[_LABELS.get(snake, snake)] = _ESCAPED.sub(
            lambda match: "\n" if match[1] == "n" else match[1], value
        )
    return found
