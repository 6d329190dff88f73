"""The model store: which archives it holds and what TorchServe will call their models."""

import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from formats.document import FormatError
from formats.integrity import check_archive
from server.errors import ServingError, UsageError

__all__ = [
    "Archive",
    "Selection",
    "default_name",
    "examine",
    "find_archives",
    "read_archive",
    "select",
]

_MANIFEST = "MAR-INF/MANIFEST.json"


@dataclass(frozen=True)
class Archive:
    """A model archive: a `.mar` file, or a folder with the same content.

    Attributes:
        path: The file or folder.
        name: The model's name, as in URLs.
        version: The model's version.
    """

    path: Path
    name: str
    version: str

    @property
    def sample(self) -> Path | None:
        """The request body that the export left beside the archive, if it did."""
        for stem in (self.path.stem, self.name):
            # Another's manifest may name its model as no file can be named.
            path = self.path.parent / f"{stem}.sample.json"
            if "/" not in stem and path.is_file():
                return path
        return None


@dataclass(frozen=True)
class Selection:
    """What can be served of what was asked for.

    Attributes:
        archives: Those that are whole.
        left_out: For each damaged one, a line that names it and what is damaged in it.
        lost: The same ones' models, by their names or else their files'.
    """

    archives: list[Archive]
    left_out: list[str]
    lost: list[str]


def read_archive(path: Path) -> Archive:
    """Read an archive's manifest.

    Raises:
        ServingError: It is not an archive, has no manifest, or one that is not valid.
    """
    try:
        manifest = json.loads(_manifest_text(path))
        model = manifest["model"]
        name = model.get("modelName") or default_name(path.name)
        return Archive(path, str(name), str(model.get("modelVersion") or "1.0"))
    except KeyError:
        raise ServingError(
            f"{path} has no {_MANIFEST} with a model in it: cut short, or no model archive; "
            "export it again, or move it out of the store."
        ) from None
    except Exception as error:  # damage sends zipfile down any path
        raise ServingError(
            f"{path} is not a readable model archive ({error}); export it again, or move it "
            "out of the store."
        ) from None


def default_name(file_name: str) -> str:
    """What TorchServe calls a model whose manifest does not say (ModelServer.java)."""
    stem = file_name.rpartition(".")[0] if ".mar" in file_name else file_name
    return re.sub(r"\W|^_", "_", stem, flags=re.ASCII)


def find_archives(store: Path) -> list[Path]:
    """All archives of a store, sorted: `.mar` files, and folders with a manifest.

    Raises:
        UsageError: The store is not a folder, or holds no archive.
    """
    try:
        found = sorted(path for path in store.iterdir() if _is_archive(path))
    except OSError as error:
        raise UsageError(
            f"The model store {store} cannot be read ({error.strerror}); export a model into it, "
            "or name another with --model-store."
        ) from None
    if not found:
        raise UsageError(
            f"The model store {store} holds no model archive (.mar); export a model into it, or "
            "name another with --model-store."
        )
    return found


def select(store: Path, wanted: Sequence[str] | None) -> list[Archive]:
    """The archives to serve.

    Args:
        store: The model store.
        wanted: Names of models or of archives (with or without `.mar`); None for all.

    Raises:
        UsageError: The store is empty, a name is not in it, or two archives hold the same model.
        ServingError: An archive cannot be read.
    """
    paths = find_archives(store)
    if wanted is None:
        chosen = [read_archive(path) for path in paths]
    else:
        chosen = _named(store, paths, wanted)
    _check_distinct(chosen)
    return chosen


def examine(store: Path, wanted: Sequence[str] | None) -> Selection:
    """The archives to serve, without those that are damaged.

    TorchServe ends when it is told to load a damaged one, and with it every other model.

    Args:
        store: The model store.
        wanted: As for `select`.

    Raises:
        UsageError: As `select` does.
        ServingError: Nothing is left to serve.
    """
    paths = find_archives(store)
    readable, broken = _read_all(paths)
    chosen = readable
    if wanted is not None:
        known = [name for path in broken for name in (path.name, path.stem)]
        chosen = _pick(store, readable, [name for name in wanted if name not in known])
        broken = {path: e for path, e in broken.items() if {path.name, path.stem} & {*wanted}}
    # The digests are computed without the interpreter's lock.
    with ThreadPoolExecutor() as threads:
        verdicts = list(threads.map(_damage, (archive.path for archive in chosen)))
    sound = [archive for archive, damage in zip(chosen, verdicts, strict=True) if damage is None]
    left_out = [str(error) for error in broken.values()]
    left_out += [damage for damage in verdicts if damage is not None]
    if not sound:
        raise ServingError("; ".join([*left_out, "nothing is left to serve"]))
    _check_distinct(sound)
    lost = [default_name(path.name) for path in broken]
    lost += [one.name for one, damage in zip(chosen, verdicts, strict=True) if damage is not None]
    return Selection(sound, left_out, lost)


def _damage(path: Path) -> str | None:
    try:
        check_archive(path)
    except FormatError as error:
        return f"{path} is damaged: {error}"
    return None


def _read_all(paths: Iterable[Path]) -> tuple[list[Archive], dict[Path, ServingError]]:
    readable: list[Archive] = []
    broken: dict[Path, ServingError] = {}
    for path in paths:
        try:
            readable.append(read_archive(path))
        except ServingError as error:
            broken[path] = error
    return readable, broken


def _named(store: Path, paths: Iterable[Path], wanted: Sequence[str]) -> list[Archive]:
    readable, broken = _read_all(paths)
    for path, error in broken.items():
        # Only matters if it is asked for, and no other archive goes by that name.
        names = {name for a in readable for name in (a.name, a.path.name, a.path.stem)}
        if ({path.name, path.stem} & {*wanted}) - names:
            raise error
    return _pick(store, readable, wanted)


def _pick(store: Path, readable: Sequence[Archive], wanted: Sequence[str]) -> list[Archive]:
    chosen: dict[Path, Archive] = {}
    for name in wanted:
        matches = [a for a in readable if name in (a.name, a.path.name, a.path.stem)]
        if not matches:
            known = ", ".join(sorted({archive.name for archive in readable})) or "none"
            raise UsageError(
                f"No model {name!r} in {store}; there is: {known}. Export it, or correct --models."
            )
        chosen.update({archive.path: archive for archive in matches})
    return list(chosen.values())


def _check_distinct(archives: Iterable[Archive]) -> None:
    seen: dict[tuple[str, str], Archive] = {}
    for archive in archives:
        if any(character in archive.path.name for character in ",=") or ".." in archive.path.name:
            raise UsageError(
                f"TorchServe cannot load {archive.path}: a file name with ',', '=' or '..' means "
                "something else to it; rename the archive."
            )
        other = seen.setdefault((archive.name, archive.version), archive)
        if other is not archive:
            raise UsageError(
                f"{other.path.name} and {archive.path.name} both hold version {archive.version} "
                f"of model {archive.name!r}; move one out of the store, or pick with --models."
            )


def _is_archive(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.suffix == ".mar" or (path / _MANIFEST).is_file()


def _manifest_text(path: Path) -> bytes:
    if path.is_dir():
        if not (path / _MANIFEST).is_file():
            raise KeyError(_MANIFEST)
        return (path / _MANIFEST).read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(_MANIFEST)
