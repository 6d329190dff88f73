"""Is an archive up to date? Knows the files it was made from, without importing torch."""

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

__all__ = ["FilesRead", "is_fresh", "renew", "write_sources"]

_ROOT: Final = Path(__file__).resolve().parent.parent
_ROOMS: Final = ("export", "handlers", "engine", "formats")
_INSTALLED: Final = tuple(
    str(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "purelib", "platlib")
)
_PACKAGES: Final = ("torch", "numpy")
_WEIGHTS: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class FilesRead:
    """Records the project files that Python reads while a context lasts.

    Modules that are imported and files opened with Python's own `open` or by safetensors count.
    Other compiled extensions open files unseen, so every file of weights below the model file's
    folder counts as well. Installed packages are left out.

    Args:
        model_file: the model file that is about to be loaded, or None.
    """

    def __init__(self, model_file: Path | None) -> None:
        self._model_file = model_file
        self._paths: set[str] = set()
        self._watching = False
        # An audit hook cannot be removed, so it is switched.
        sys.addaudithook(self._on_event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the context ends."""
        import safetensors
        import safetensors.torch

        # Its files are opened by compiled code, which no audit hook sees.
        original = safetensors.safe_open

        def safe_open(filename: Any, *arguments: Any, **options: Any) -> Any:
            self._paths.add(str(filename))
            return original(filename, *arguments, **options)

        places: list[Any] = [safetensors, safetensors.torch]
        for place in places:
            place.safe_open = safe_open
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            for place in places:
                place.safe_open = original

    def paths(self) -> list[Path]:
        """Return what was read, sorted, without what is installed or gone."""
        # Other model files of the same command are loaded too, but this one does not need them.
        modules = {
            getattr(module, "__file__", None)
            for name, module in list(sys.modules.items())
            if not name.startswith("vitrine_model_")
        }
        named = self._paths | {name for name in modules if name is not None}
        found = {Path(name).resolve() for name in named if _is_project_file(name)}
        if self._model_file is not None:
            found.add(self._model_file.resolve())
            below = self._model_file.resolve().parent.rglob("*")
            found |= {path for path in below if path.suffix in _WEIGHTS}
        return sorted(path for path in found if path.is_file())

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._watching and event == "open" and isinstance(arguments[0], (str, Path)):
            mode = arguments[1]
            if mode is None or "r" in mode:
                self._paths.add(str(arguments[0]))


def _is_project_file(name: str) -> bool:
    resolved = str(Path(name).resolve())
    outside = (*_INSTALLED, "/proc/", "/dev/", "/sys/", "/etc/", "/usr/")
    return not resolved.startswith(outside) and "__pycache__" not in resolved


def write_sources(
    path: Path, sources: Iterable[Path], outputs: Iterable[Path], arguments: dict[str, Any]
) -> None:
    """Write down what an archive was made from.

    Args:
        path: the record's own file.
        sources: the files read; the code of export and of what travels is added.
        outputs: what was made.
        arguments: everything else the result depends on, as JSON values.
    """
    digests = {str(source): _digest(source) for source in [*sources, *_own_code()]}
    record = {
        "arguments": arguments,
        "packages": _packages(),
        "files": digests,
        "outputs": {output.name: _digest(output) for output in outputs},
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def renew(path: Path, output: Path) -> None:
    """Write down that an output was changed on purpose, and is as good as it was made."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["outputs"][output.name] = _digest(output)
    except (OSError, ValueError, KeyError):
        return
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def is_fresh(path: Path, outputs: Iterable[Path], arguments: dict[str, Any]) -> bool:
    """Tell whether the outputs exist and would come out the same again."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if record.get("arguments") != arguments or record.get("packages") != _packages():
        return False
    files = record.get("files", {})
    made = record.get("outputs", {})
    if any(_digest(output) != made.get(output.name) for output in outputs):
        return False
    if not {str(source) for source in _own_code()} <= set(files):
        return False
    return all(_digest(Path(name)) == digest for name, digest in files.items())


def _own_code() -> list[Path]:
    return [path for room in _ROOMS for path in sorted((_ROOT / room).glob("*.py"))]


def _packages() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"
