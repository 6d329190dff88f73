"""Settings that stand in an archive's model-config.yaml or, before that, in the environment."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["FileLimits", "Setting", "count", "file_settings", "one_of", "rate", "read_settings"]

_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True)
class FileLimits:
    """When a file that is appended to is put aside, and how many of those are kept.

    Attributes:
        max_bytes: a file that would grow beyond this is put aside.
        max_age_seconds: a file whose first line is older than this is put aside, at the next
            line; 86,400 is a day.
        keep: how many files put aside are kept for each model.
        private: whether only the server's own user may read them.
    """

    max_bytes: int = 64 << 20
    max_age_seconds: float = 86_400
    keep: int = 5
    private: bool = False


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        variable: its name in the environment.
        convert: makes its value of a text, or of what YAML made of one.
        expected: what it has to be, for people.
    """

    variable: str
    convert: Callable[[Any], Any]
    expected: str

    def read(self, where: str, value: Any) -> Any:
        """Return the value.

        Raises:
            ValueError: it is wrong; the message names `where`.
        """
        try:
            return self.convert(value)
        except (TypeError, ValueError):
            raise ValueError(f"{where} is {value!r}; expected {self.expected}") from None


def read_settings(
    name: str,
    known: Mapping[str, Setting],
    section: Mapping[str, Any] | None,
    environ: Mapping[str, str],
) -> dict[str, Any]:
    """Return what is set; the environment wins over the archive.

    Args:
        name: of the section, for messages.
        known: the settings that there are, `mode` and `folder` among them.
        section: the section of the archive's model-config.yaml, or None.
        environ: the worker's environment; an empty variable is one that is not set.

    Raises:
        ValueError: a setting is unknown, wrong or missing; the message names it and what was
            expected.
    """
    if not isinstance(section, Mapping | None):
        raise ValueError(f"{name} is {section!r}; expected settings by name")
    unknown = [one for one in section or () if one not in known]
    if unknown:
        raise ValueError(f"{name}.{unknown[0]} is not a setting; expected {', '.join(known)}")
    values = {}
    for one, setting in known.items():
        if environ.get(setting.variable):
            values[one] = setting.read(setting.variable, environ[setting.variable])
        elif section is not None and section.get(one) is not None:
            values[one] = setting.read(f"{name}.{one}", section[one])
    mode = values.get("mode", "off")
    if mode != "off" and "folder" not in values:
        raise ValueError(
            f"{name}.folder is not set; expected an absolute path there or in "
            f"{known['folder'].variable}, because {name}.mode is {mode}"
        )
    return values


def file_settings(prefix: str) -> dict[str, Setting]:
    """Return the settings of a file that is appended to: `folder`, and those of `FileLimits`.

    Args:
        prefix: what the names of their variables begin with.
    """
    size = "a whole number above 0, or one with KiB, MiB or GiB"
    return {
        "folder": Setting(f"{prefix}_DIR", _folder, "an absolute path"),
        "max_bytes": Setting(f"{prefix}_MAX_BYTES", _bytes, size),
        "max_age_seconds": Setting(f"{prefix}_MAX_AGE", _seconds, "seconds, a number above 0"),
        "keep": Setting(f"{prefix}_KEEP", count, "a whole number, 0 or more"),
    }


def one_of(modes: tuple[str, ...]) -> Callable[[Any], str]:
    """Return what reads one of these words."""

    def read(value: Any) -> str:
        # YAML reads a bare `off` as False.
        mode = "off" if value is False else value
        if mode not in modes:
            raise ValueError
        return str(mode)

    return read


def rate(value: Any) -> float:
    """Read a number from 0 to 1."""
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def count(value: Any) -> int:
    """Read a whole number, 0 or more."""
    number = _whole(value)
    if number < 0:
        raise ValueError
    return number


def _seconds(value: Any) -> float:
    seconds = _number(value)
    if not (0 < seconds < math.inf):
        raise ValueError
    return seconds


def _folder(value: Any) -> Path:
    folder = Path(value)
    if not folder.is_absolute():
        raise ValueError
    return folder


def _bytes(value: Any) -> int:
    unit = 1
    if isinstance(value, str) and value[-3:] in _UNITS:
        unit = _UNITS[value[-3:]]
        value = value[:-3]
    size = _whole(value) * unit
    if not 0 < size < 1 << 63:
        raise ValueError
    return size


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)
