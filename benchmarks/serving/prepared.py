"""What a work's servers share: archives, the model file in them, inputs and answers."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.serving.work import Cases, Work, make_cases

__all__ = ["Prepared", "export", "prepare"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_STORES: Final = _ROOT / ".cache" / "serve"


@dataclass(frozen=True)
class Prepared:
    """A work that can be served.

    Attributes:
        work: which.
        store: model store with its archive, exported without options; it is kept.
        model: `model.pt` of that archive, which every server serves.
        cases: inputs and expected answers.
        scratch: a folder that is gone afterwards.
    """

    work: Work
    store: Path
    model: Path
    cases: Cases
    scratch: Path

    def folder(self, name: str) -> Path:
        """Make a folder for one server."""
        made = self.scratch / name
        made.mkdir(parents=True)
        return made


def prepare(work: Work, scratch: Path) -> Prepared:
    """Export a work's model, unpack its TorchScript file, and answer its inputs.

    Args:
        work: which.
        scratch: an empty folder to work in.

    Raises:
        RuntimeError: the export failed.
        ValueError: answers cannot be told apart.
    """
    store = export(work.model_file)
    with zipfile.ZipFile(store / f"{work.model}.mar") as archive:
        model = Path(archive.extract("model.pt", scratch))
    return Prepared(work, store, model, make_cases(work, model), scratch)


def export(
    model_file: Path, options: Sequence[str] = (), tune: Sequence[str] | None = None
) -> Path:
    """Export a model file as a user would, unless that is done, and return the model store.

    Args:
        model_file: of the model.
        options: of `python -m export`; each set of them has a store of its own.
        tune: options of `python -m export tune`, to be run on a copy of it; None for none.

    Raises:
        RuntimeError: with the export's own words.
    """
    name = hashlib.sha256(json.dumps(list(options)).encode()).hexdigest()[:12]
    store = _STORES / name
    store.mkdir(parents=True, exist_ok=True)
    _python("export", "--update", str(model_file), "--model-store", str(store), *options)
    return store if tune is None else _tuned(store / f"{model_file.stem}.mar", tune)


def _tuned(archive: Path, options: Sequence[str]) -> Path:
    """Tune a copy of an archive, unless that is done, and return its model store."""
    name = "-".join(options).strip("-").replace("--", "-")
    store = archive.parent / name
    copy = store / archive.name
    made_of = copy.with_suffix(".made_of")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if not made_of.exists() or made_of.read_text(encoding="ascii") != digest:
        store.mkdir(exist_ok=True)
        shutil.copy(archive, copy)
        _python("export", "tune", str(copy), *options)
        made_of.write_text(digest, encoding="ascii")
    return store


def _python(module: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"python -m {module} {arguments[0]}: {done.stderr.strip()}")


def write_settings(path: Path, values: dict[str, object]) -> dict[str, str]:
    """Write a peer's settings, and return the environment variable that names the file."""
    path.write_text(json.dumps(values), encoding="utf-8")
    return {"PEER_SETTINGS": str(path)}
