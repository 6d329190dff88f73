"""Baselines of the models in a log: from their archives, or from files named by hand."""

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from formats.baseline import FILE_NAME, Baseline
from formats.document import FormatError
from formats.signature import Signature

__all__ = ["Baselines", "read_baseline"]


def read_baseline(path: Path) -> tuple[Baseline, tuple[str, str] | None]:
    """Read a baseline, and of which model and version it is.

    Args:
        path: an archive (`.mar`), or a `baseline.json`, which does not say whose it is.

    Raises:
        FormatError: it is neither, is missing, or is damaged.
    """
    if path.suffix != ".mar":
        if not path.is_file():
            raise FormatError(f"{path} is not there; expected an archive or a {FILE_NAME}")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / FILE_NAME).write_bytes(path.read_bytes())
            return Baseline.read(Path(folder)), None
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            for name in (FILE_NAME, "signature.json"):
                (Path(folder) / name).write_bytes(archive.read(name))
            signature = Signature.read(Path(folder))
            owner = (signature.model, signature.model_version)
            return Baseline.read(Path(folder)), owner
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: no {FILE_NAME} could be read from it: {error}") from None


@dataclass
class Baselines:
    """Finds the baseline of a model's version.

    Args:
        store: folder of archives, or None. An archive that cannot be read counts for none.
        named: baselines that go before those of the store: by model.
    """

    store: Path | None = None
    named: dict[str, Baseline] = field(default_factory=dict)
    _read: dict[Path, tuple[int, tuple[Baseline, tuple[str, str]] | None]] = field(
        default_factory=dict, repr=False
    )

    @classmethod
    def of(cls, store: Path | None, given: Sequence[str]) -> "Baselines":
        """Make them from the command line's words.

        Args:
            store: folder of archives.
            given: each "FILE.mar", or "MODEL=FILE" with an archive or a `baseline.json`.

        Raises:
            FormatError: a file cannot be read, or does not say whose it is.
        """
        named = {}
        for text in given:
            model, separator, path = text.rpartition("=")
            baseline, owner = read_baseline(Path(path))
            if not separator:
                if owner is None:
                    raise FormatError(f"{path} does not say of which model; expected MODEL={path}")
                model = owner[0]
            named[model] = baseline
        return cls(store, named)

    def find(self, model: str, version: str | None) -> Baseline | None:
        """Return the baseline of a model's version, or None.

        Where `version` is None, that of the newest archive of the model.
        """
        if model in self.named:
            return self.named[model]
        found: list[tuple[int, Baseline]] = []
        for path in sorted(self.store.glob("*.mar")) if self.store else ():
            try:
                changed = path.stat().st_mtime_ns
                if path not in self._read or self._read[path][0] != changed:
                    self._read[path] = (changed, self._try(path))
            except OSError:
                continue
            known = self._read[path][1]
            if known is not None and known[1][0] == model and version in (None, known[1][1]):
                found.append((changed, known[0]))
        return max(found, key=lambda one: one[0])[1] if found else None

    @staticmethod
    def _try(path: Path) -> tuple[Baseline, tuple[str, str]] | None:
        try:
            baseline, owner = read_baseline(path)
        except FormatError:
            return None
        return None if owner is None else (baseline, owner)
