"""Media types: what a body is, and which answer a client accepts (RFC 9110, 8.3 and 12.5).

Quality values count, and so does how narrowly a range names a type; between equals, the order in
which the client wrote them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from handlers.errors import RequestError

__all__ = ["IMAGE", "JSON", "NPY", "PNG", "RAW", "body_type", "choose", "negotiate"]

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
RAW: Final = "application/octet-stream"
IMAGE: Final = "image/*"
PNG: Final = "image/png"

_CHARSETS: Final = ("", "utf-8", "utf8", "us-ascii")
_QUALITY: Final = re.compile(r"[01](\.\d{0,3})?")


def body_type(headers: Mapping[str, str]) -> str:
    """Return the media type of a body: `JSON`, `NPY`, `RAW` or `IMAGE`. Without one it is JSON.

    Args:
        headers: of the request, with lower-case names.

    Raises:
        RequestError: it is none of these, or JSON in another charset than UTF-8 (status 415).
    """
    return _body_type(headers.get("content-type", ""))


# Clients say the same every time.
@lru_cache(maxsize=64)
def _body_type(text: str) -> str:
    name, _, rest = text.lower().partition(";")
    name = name.strip() or JSON
    if name in (NPY, RAW):
        return name
    if name in ("image/png", "image/jpeg", "image/jpg", IMAGE):
        return IMAGE
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]*)", rest)
    if name in (JSON, "text/json") or re.fullmatch(r"application/[\w.-]+\+json", name):
        if charset is None or charset[1] in _CHARSETS:
            return JSON
        message = f"JSON is written in UTF-8, and this request says {charset[1]!a}"[:200]
        raise _unsupported(message)
    raise _unsupported(f"a body of the type {name!a} is not understood"[:200])


def _unsupported(message: str) -> RequestError:
    return RequestError(
        "unsupported_media_type",
        message,
        status=415,
        expected=f"{JSON}, {NPY}, {RAW}, image/png or image/jpeg",
    )


@dataclass(frozen=True)
class _Range:
    """One entry of an Accept header: `*/*`, `type/*` or `type/subtype`, and its quality."""

    name: str
    quality: float

    def fit(self, offer: str) -> int:
        """Return how narrowly it names an offer: 3 exactly, 2 its type, 1 any, 0 not at all."""
        if self.name == offer:
            return 3
        if self.name == offer.partition("/")[0] + "/*":
            return 2
        return 1 if self.name == "*/*" else 0


def _ranges(accept: str) -> Iterator[_Range]:
    for entry in accept.lower().split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        qualities = [text[2:].strip() for text in parameters if text.startswith("q=")]
        if not qualities:
            yield _Range(name, 1.0)
        elif _QUALITY.fullmatch(qualities[0]):
            yield _Range(name, float(qualities[0]))


@lru_cache(maxsize=64)
def choose(accept: str | None, offers: tuple[str, ...]) -> str | None:
    """Return the media type that a client likes best.

    Args:
        accept: the value of its Accept header, if it sent one.
        offers: what it can have; the first is for those who take anything.

    Returns:
        One of the offers, or None if it accepts none of them.
    """
    if accept is None or not accept.strip():
        return offers[0]
    ranges = list(_ranges(accept))
    best: tuple[float, int, int] = (0.0, 0, 0)
    chosen = None
    for offer in offers:
        fits = [(one.fit(offer), -place) for place, one in enumerate(ranges) if one.fit(offer)]
        if not fits:
            continue
        fit, place = max(fits)
        rank = (ranges[-place].quality, fit, place)
        if rank[0] > 0 and (chosen is None or rank > best):
            best, chosen = rank, offer
    return chosen


def negotiate(accept: str | None, offers: tuple[str, ...], what: str, why: str = "") -> str:
    """Return the media type that a client likes best, or refuse.

    Args:
        accept: the value of its Accept header, if it sent one.
        offers: what it can have.
        what: what is offered, for the error.
        why: why there is no more than that.

    Raises:
        RequestError: it accepts none of them (status 406).
    """
    chosen = choose(accept, offers)
    if chosen is None:
        raise RequestError(
            "not_acceptable",
            f"{what} cannot be had as {accept!a}"[:200] + why[:500],
            status=406,
            expected=", ".join(offers),
        )
    return chosen
