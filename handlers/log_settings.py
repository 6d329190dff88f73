"""The activation log's settings, and which requests they pick."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from handlers.settings import FileLimits, Setting, file_settings, one_of, rate, read_settings

__all__ = ["LogSettings"]

_MODES: Final = ("off", "asked", "sampled")


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
        return cls(**read_settings("activation_log", _SETTINGS, section, environ))

    @property
    def limits(self) -> FileLimits:
        """When a file is put aside."""
        return FileLimits(self.max_bytes, self.max_age_seconds, self.keep)

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


_PREFIX: Final = "VITRINE_ACTIVATION_LOG"
_SETTINGS: Final = {
    "mode": Setting(_PREFIX, one_of(_MODES), "off, asked or sampled"),
    "rate": Setting(f"{_PREFIX}_RATE", rate, "a number from 0 to 1"),
    **file_settings(_PREFIX),
}
