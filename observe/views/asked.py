"""What an address asks for, and what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

from observe.queries import FLAGS, STATISTICS, ModelSummary, Window

__all__ = ["SPANS", "Asked", "Refused"]

SPANS: Final = {"15m": 900_000, "1h": 3_600_000, "1d": 86_400_000}
"""Windows that end with the latest record, in milliseconds."""
_SCALES: Final = ("baseline", "value")
_LONGEST: Final = 253_402_300_799_999


class Refused(Exception):
    """What was asked for cannot be shown.

    Args:
        status: of HTTP: 400 or 404.
        message: what is wrong, and what was expected.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Asked:
    """What the page of a model is asked to show.

    Attributes:
        model: its name.
        version: only this one; None for all.
        statistic: of the heat map.
        scale: what colours mean: "baseline" or "value".
        last: one of `SPANS`, or None.
        since: milliseconds since 1970, or None.
        until: likewise, not included.
        layers: a part of the names of those to show.
        flag: of the flagged requests only those with this one of `FLAGS`; None for all.
    """

    model: str
    version: str | None = None
    statistic: str = "mean"
    scale: str = "baseline"
    last: str | None = None
    since: int | None = None
    until: int | None = None
    layers: str = ""
    flag: str | None = None

    @classmethod
    def of(cls, known: list[ModelSummary], model: str, query: Mapping[str, str]) -> "Asked":
        """Read an address.

        Args:
            known: what the log has.
            model: its name.
            query: the parameters.

        Raises:
            Refused: there is no such model or version, or a parameter is not what it may be.
        """
        names = sorted({one.model for one in known})
        if model not in names:
            listed = ", ".join(names) or "none yet"
            raise Refused(404, f"the log has no model {model!r}; it has {listed}")
        versions = [one.version for one in known if one.model == model]
        version = query.get("version") or None
        if version not in (None, *versions):
            raise Refused(
                404, f"the log has no version {version!r} of {model}; it has {', '.join(versions)}"
            )
        asked = cls(
            model,
            version,
            _one_of(query, "statistic", STATISTICS, "mean"),
            _one_of(query, "scale", _SCALES, "baseline"),
            _one_of(query, "last", ("all", *SPANS), "all"),
            time_of(query, "since"),
            time_of(query, "until"),
            query.get("layers", ""),
            _one_of(query, "flag", ("all", *FLAGS), "all"),
        )
        if asked.since is not None and asked.until is not None and asked.since >= asked.until:
            raise Refused(400, "since is not before until")
        return replace(
            asked,
            last=None if asked.last == "all" else asked.last,
            flag=None if asked.flag == "all" else asked.flag,
        )

    def window(self, known: list[ModelSummary]) -> Window:
        """Return the records that are meant; `last` is reckoned from the latest one."""
        since = self.since
        if self.last is not None:
            latest = max(
                one.last
                for one in known
                if one.model == self.model and self.version in (None, one.version)
            )
            since = latest - SPANS[self.last] + 1
        return Window(self.model, self.version, since, self.until)

    def address(self, **changes: Any) -> str:
        """Return the address of the same page with something changed; a time range ends `last`."""
        changed = replace(self, **changes)
        if {"since", "until"} & changes.keys():
            changed = replace(changed, last=None)
        elif "last" in changes:
            changed = replace(changed, since=None, until=None)
        plain = Asked(self.model)
        query = {
            name: value
            for name, value in vars(changed).items()
            if value is not None and value != getattr(plain, name)
        }
        return f"/m/{quote(self.model, safe='')}" + (f"?{urlencode(query)}" if query else "")


def time_of(query: Mapping[str, str], name: str) -> int | None:
    """Return a parameter as milliseconds since 1970; None where it is missing or empty.

    Raises:
        Refused: it is neither milliseconds nor a date and time.
    """
    text = query.get(name, "")
    if not text:
        return None
    try:
        found = int(text) if text.isascii() and text.isdecimal() else _milliseconds(text)
    except (ValueError, OverflowError):
        found = -1
    if not 0 <= found <= _LONGEST:
        raise Refused(
            400,
            f"{name} is {text!r}; expected milliseconds since 1970, or a date and time in UTC "
            "such as 2026-01-31T12:00:00",
        )
    return found


def _milliseconds(text: str) -> int:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return round(time.timestamp() * 1000)


def _one_of(query: Mapping[str, str], name: str, allowed: tuple[str, ...], usual: str) -> str:
    value = query.get(name) or usual
    if value not in allowed:
        raise Refused(400, f"{name} is {value!r}; expected one of {', '.join(allowed)}")
    return value
