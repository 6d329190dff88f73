"""Numbers and times as a person reads them."""

from datetime import UTC, datetime

from observe.deviation import FAR

__all__ = ["amount", "clock", "exact", "moment", "number", "size", "spreads", "stretch"]

_MINUS = "\N{MINUS SIGN}"
_NONE = "\N{EN DASH}"


def number(value: float | None) -> str:
    """Return a number with four digits that count; a dash for none."""
    return _NONE if value is None else f"{value:.4g}".replace("-", _MINUS)


def exact(value: float | None) -> str:
    """Return all digits of a number, as JSON would have it."""
    return "none" if value is None else repr(value)


def spreads(value: float | None) -> str:
    """Return a deviation with its sign, e.g. "+3.2"."""
    if value is None:
        return _NONE
    if abs(value) >= FAR:
        return f">{'+' if value > 0 else _MINUS}{FAR:.0f}"
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", _MINUS)


def amount(number: int, one: str, several: str | None = None) -> str:
    """Return e.g. "1 request", "12,000 requests"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def moment(time: int) -> str:
    """Return milliseconds since 1970 as date and time in UTC: "2026-01-31 12:00:00.123"."""
    found = datetime.fromtimestamp(time // 1000, UTC)
    return f"{found:%Y-%m-%d %H:%M:%S}.{time % 1000:03}"


def clock(time: int, width: int) -> str:
    """Return a time as short as a column's width allows: with date, minutes, or milliseconds."""
    text = moment(time)
    if width >= 86_400_000:
        return text[:10]
    if width >= 60_000:
        return text[5:16]
    return text[11:19] if width >= 1000 else text[11:]


def stretch(milliseconds: int) -> str:
    """Return e.g. "200 ms", "5 s", "15 min", "2 h", "1 day"."""
    for unit, name in ((86_400_000, "day"), (3_600_000, "h"), (60_000, "min"), (1000, "s")):
        if milliseconds >= unit:
            count = milliseconds / unit
            return f"{count:.4g} {name}{'s' if name == 'day' and count != 1 else ''}"
    return f"{milliseconds} ms"


def size(number: int) -> str:
    """Return bytes, e.g. "12.3 MB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number} bytes"
