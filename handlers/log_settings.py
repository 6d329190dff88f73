"""The activation log's settings, and which requests they pick."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["LogSettings"]

_MODES: Final = ("off", "asked", "sampled")
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True)
class LogSettings:
    """What is logged, where, and how much of it is kept.

    Attributes:
        mode: "off" logs nothing; "asked" the requests that ask for their activations; "sampled"
            those, `rate` of all others, and every request that fails or makes NaN or infinities.
        rate: which part of all requests "sampled" picks, 0 to 1.
        folder: where the files are; absolute, because a worker runs in a folder of TorchServe's.
        max_bytes: a file that would grow beyond this is put aside.
        max_age_seconds: a file whose first line is older than this is put aside, at the next
            line; 86,400 is a day.
        keep: how many files put aside are kept for each model.
    """

    mode: str = "off"
    rate: float = 0.01
    folder: Path | None = None
    max_bytes: int = 64 << 20
    max_age_seconds: float = 86_400
    keep: int = 5

    @classmethod
    def from_config(
        cls, section: Mapping[str, Any] | None, environ: Mapping[str, str]
    ) -> "LogSettings":
        """Read the settings; the environment wins over the archive.

        Args:
            section: `vitrine: activation_log:` of the archive's model-config.yaml, or None.
            environ: the worker's environment; an empty variable is one that is not set.

        Raises:
            ValueError: a setting is unknown, wrong or missing; the message names it and what
                was expected.
        """
        if not isinstance(section, Mapping | None):
            raise ValueError(f"activation_log is {section!r}; expected settings by name")
        unknown = [name for name in section or () if name not in _SETTINGS]
        if unknown:
            raise ValueError(
                f"activation_log.{unknown[0]} is not a setting; expected {', '.join(_SETTINGS)}"
            )
        values = {}
        for name, setting in _SETTINGS.items():
            if environ.get(setting.variable):
                values[name] = setting.read(setting.variable, environ[setting.variable])
            elif section is not None and section.get(name) is not None:
                values[name] = setting.read(f"activation_log.{name}", section[name])
        settings = cls(**values)
        if settings.mode != "off" and settings.folder is None:
            raise ValueError(
                "activation_log.folder is not set; expected an absolute path there or in "
                f"{_SETTINGS['folder'].variable}, because activation_log.mode is {settings.mode}"
            )
        return settings

    def reason(
        self, draw: float, *, asked: bool, error: bool = False, non_finite: bool = False
    ) -> str | None:
        """Say why a request is to be logged.

        Ask before the request runs, to know whether its layers must be measured, and again with
        the same draw when `error` and `non_finite` are known.

        Args:
            draw: a random number of the request's own, evenly from 0 to below 1.
            asked: it asked for its activations.
            error: it ended in an error.
            non_finite: it made NaN or an infinity.

        Returns:
            The record's reason, the first that holds of "asked", "error", "non_finite" and
            "sampled"; None when it is not to be logged.
        """
        if self.mode == "off":
            return None
        if asked:
            return "asked"
        if self.mode != "sampled":
            return None
        if error:
            return "error"
        if non_finite:
            return "non_finite"
        return "sampled" if draw < self.rate else None


@dataclass(frozen=True)
class _Setting:
    variable: str
    convert: Callable[[Any], Any]
    expected: str

    def read(self, where: str, value: Any) -> Any:
        try:
            return self.convert(value)
        except (TypeError, ValueError):
            raise ValueError(f"{where} is {value!r}; expected {self.expected}") from None


def _mode(value: Any) -> str:
    # YAML reads a bare `off` as False.
    mode = "off" if value is False else value
    if mode not in _MODES:
        raise ValueError
    return str(mode)


def _rate(value: Any) -> float:
    rate = _number(value)
    if not 0 <= rate <= 1:
        raise ValueError
    return rate


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


def _count(value: Any) -> int:
    count = _whole(value)
    if count < 0:
        raise ValueError
    return count


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


_PREFIX: Final = "VITRINE_ACTIVATION_LOG"
_SETTINGS: Final = {
    "mode": _Setting(_PREFIX, _mode, "off, asked or sampled"),
    "rate": _Setting(f"{_PREFIX}_RATE", _rate, "a number from 0 to 1"),
    "folder": _Setting(f"{_PREFIX}_DIR", _folder, "an absolute path"),
    "max_bytes": _Setting(
        f"{_PREFIX}_MAX_BYTES", _bytes, "a whole number above 0, or one with KiB, MiB or GiB"
    ),
    "max_age_seconds": _Setting(f"{_PREFIX}_MAX_AGE", _seconds, "seconds, a number above 0"),
    "keep": _Setting(f"{_PREFIX}_KEEP", _count, "a whole number, 0 or more"),
}
