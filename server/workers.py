"""How many workers a model has that computes much, where its archive does not say."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from formats.workload import is_large
from server.archives import Archive

__all__ = ["Machine", "Workers", "machine", "model_settings", "workers_of"]

_CONFIG: Final = "model-config.yaml"
_MOST: Final = 8
"""Each takes the memory of a model; who has more cores to give says so with `tune`."""
_BASE_BYTES: Final = 500_000_000
"""What a worker takes before it has a model, and for what a batch needs meanwhile."""
_COPIES: Final = 3
"""Of an archive's bytes in a worker that has loaded it: the module, and what was made of it."""
_MEMORY_SHARE: Final = 0.5
_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Machine:
    """What this process may use.

    Attributes:
        cores: of the processor.
        memory: bytes.
    """

    cores: int
    memory: int


@dataclass(frozen=True)
class Workers:
    """A model's workers.

    Attributes:
        archive: The model's.
        count: How many.
    """

    archive: Archive
    count: int

    def __str__(self) -> str:
        return (
            f"{self.archive.name} computes much: {self.count} workers. (minWorkers in its "
            f"{_CONFIG}, which `python -m export tune` writes, goes before this.)"
        )


def machine() -> Machine:
    """What a container, or this machine, gives."""
    cores = len(os.sched_getaffinity(0))
    quota = _read(_QUOTA).split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = max(1, min(cores, int(quota[0]) // int(quota[1])))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in _LIMITS if (text := _read(path).strip()).isdigit()]
    return Machine(cores, min([memory, *limits]))


def workers_of(archives: Sequence[Archive], here: Machine) -> list[Workers]:
    """One worker for each core, for every model that computes much and leaves it open.

    As many as fit into half of the memory, all such models together, and 8 at most; none of fewer
    than two.
    """
    large = [one for one in archives if _leaves_open(config := _config(one)) and is_large(config)]
    found = []
    for archive in large:
        own = _BASE_BYTES + _COPIES * _bytes_of(archive.path)
        fitting = int(here.memory * _MEMORY_SHARE / len(large) // own)
        count = min(here.cores, fitting, _MOST)
        if count > 1:
            found.append(Workers(archive, count))
    return found


def model_settings(workers: Sequence[Workers]) -> dict[str, Any]:
    """The same as the value of TorchServe's setting `models`."""
    found: dict[str, Any] = {}
    for one in workers:
        own = {
            "marName": one.archive.path.name,
            "minWorkers": one.count,
            "maxWorkers": one.count,
        }
        found.setdefault(one.archive.name, {})[one.archive.version] = own
    return found


def _leaves_open(config: Mapping[str, Any]) -> bool:
    return "minWorkers" not in config and "maxWorkers" not in config


def _config(archive: Archive) -> Mapping[str, Any]:
    """An archive's settings; none of one that has none to be read."""
    # Where it is missing, `java.torchserve_home` says so better than an import here.
    import yaml

    try:
        if archive.path.is_dir():
            text = (archive.path / _CONFIG).read_bytes()
        else:
            with zipfile.ZipFile(archive.path) as packed:
                text = packed.read(_CONFIG)
        found = yaml.safe_load(text)
    except (OSError, KeyError, zipfile.BadZipFile, yaml.YAMLError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _bytes_of(path: Path) -> int:
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    return path.stat().st_size


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
