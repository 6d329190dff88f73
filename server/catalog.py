"""The models that are served, as their archives describe them."""

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from formats.datatypes import DATATYPES
from formats.document import FormatError
from formats.signature import Signature, TensorSpec
from server.archives import Archive

__all__ = ["Catalog", "Served", "read_served"]

_PLATFORM: Final = "pytorch_libtorch"
_LARGEST_SAMPLE = 20_000


@dataclass(frozen=True)
class Served:
    """One version of a model.

    Attributes:
        name, version: As in URLs.
        signature: What it takes and answers; None for an archive that was not made by Vitrine.
        sample: The request body that the export left beside the archive, if it is not large.
    """

    name: str
    version: str
    signature: Signature | None = None
    sample: Any = None

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """The answer to `GET /v2/models/NAME` of the Open Inference Protocol.

        Args:
            versions: All that are served of the model.
        """
        inputs = self.signature.inputs if self.signature else ()
        outputs = self.signature.outputs if self.signature else ()
        return {
            "name": self.name,
            "versions": versions,
            "platform": _PLATFORM,
            "inputs": [_tensor(spec) for spec in inputs],
            "outputs": [_tensor(spec) for spec in outputs],
        }


class Catalog:
    """Every model that is served.

    Args:
        served: In the order in which TorchServe loads them: its default is a model's first.
    """

    def __init__(self, served: Iterable[Served]) -> None:
        self._models: dict[str, dict[str, Served]] = {}
        for one in served:
            self._models.setdefault(one.name, {})[one.version] = one

    @property
    def names(self) -> list[str]:
        """Names of the models, sorted."""
        return sorted(self._models)

    def versions(self, name: str) -> list[str]:
        """The versions of a model; empty when there is no such model."""
        return list(self._models.get(name, {}))

    def find(self, name: str, version: str | None = None) -> Served | None:
        """A model, in the version that is loaded first if none is named."""
        versions = self._models.get(name, {})
        if version is None:
            return next(iter(versions.values()), None)
        return versions.get(version)

    def defaults(self) -> list[Served]:
        """Each model in the version that is loaded first, sorted by name."""
        return [next(iter(self._models[name].values())) for name in self.names]

    def several(self) -> list[Served]:
        """Every version of the models that are served in more than one, sorted by name."""
        found = (self._models[name].values() for name in self.names)
        return [one for versions in found if len(versions) > 1 for one in versions]


def read_served(archive: Archive) -> Served:
    """Read what an archive says of its model."""
    return Served(archive.name, archive.version, _signature(archive.path), _sample(archive.sample))


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(spec.shape)}


def _signature(path: Path) -> Signature | None:
    try:
        if path.is_dir():
            return Signature.read(path)
        with zipfile.ZipFile(path) as archive:
            # Has what reading needs of a folder: `/`, `name` and `read_bytes`.
            return Signature.read(cast(Path, zipfile.Path(archive)))
    except (FormatError, OSError, zipfile.BadZipFile):
        return None


def _sample(path: Path | None) -> Any:
    try:
        if path is None or path.stat().st_size > _LARGEST_SAMPLE:
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
