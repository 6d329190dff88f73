"""Settings of the recording of requests, and which of them it picks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from handlers.settings import (
    FileLimits,
    Setting,
    count,
    file_settings,
    one_of,
    rate,
    read_settings,
)

__all__ = ["RecordingSettings"]


@dataclass(frozen=True)
class RecordingSettings:
    """What is recorded, where, and how much of it is kept.

    Attributes:
        mode: "off" records nothing, "sampled" a part of all requests.
        rate: which part, 0 to 1.
        most: how many requests a worker records; after that it records no more.
        folder: where the files are; absolute, because a worker runs in a folder of TorchServe's.
        max_bytes, max_age_seconds, keep: see `handlers.settings.FileLimits`.
    """

    mode: str = "off"
    rate: float = 0.01
    most: int = 10_000
    folder: Path | None = None
    max_bytes: int = 64 << 20
    max_age_seconds: float = 86_400
    keep: int = 1

    @classmethod
    def from_config(
        cls, section: Mapping[str, Any] | None, environ: Mapping[str, str]
    ) -> "RecordingSettings":
        """Read the settings; the environment wins over the archive.

        Args:
            section: `vitrine: recording:` of the archive's model-config.yaml, or None.
            environ: the worker's environment; an empty variable is one that is not set.

        Raises:
            ValueError: a setting is unknown, wrong or missing; the message names it and what
                was expected.
        """
        return cls(**read_settings("recording", _SETTINGS, section, environ))

    @property
    def limits(self) -> FileLimits:
        """When a file is put aside; it holds what clients sent, and is the server's alone."""
        return FileLimits(self.max_bytes, self.max_age_seconds, self.keep, private=True)


_PREFIX: Final = "VITRINE_RECORDING"
_SETTINGS: Final = {
    "mode": Setting(_PREFIX, one_of(("off", "sampled")), "off or sampled"),
    "rate": Setting(f"{_PREFIX}_RATE", rate, "a number from 0 to 1"),
    "most": Setting(f"{_PREFIX}_MOST", count, "a whole number, 0 or more"),
    **file_settings(_PREFIX),
}
