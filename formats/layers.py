"""The layers of an exported model that can be observed, in execution order."""

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from formats.document import FormatError, read_document, write_document

VERSION: Final = 1
FILE_NAME: Final = "layers.json"


def fits(name: str, kind: str, pattern: str) -> bool:
    """Tell whether a pattern means a layer.

    Args:
        name: the layer's qualified name.
        kind: the name of its class.
        pattern: a glob on names (`block*.relu`), or on classes (`type:Conv*`).
    """
    if pattern.startswith("type:"):
        return fnmatchcase(kind, pattern.removeprefix("type:"))
    return fnmatchcase(name, pattern)


@dataclass(frozen=True)
class Layer:
    """A layer that a hook is compiled into.

    Attributes:
        name: as `named_modules()` has it.
        type: its class.
        chosen: whether statistics are taken of it; the others only help to find the layer that
            a NaN came from.
        axes: per part of its output, the axis that counts rows, or -1 where none does.
        parts: names of the parts of its output: "" for a lone tensor, else positions and keys.
    """

    name: str
    type: str
    chosen: bool
    axes: tuple[int, ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Layers:
    """What an archive says of its layers.

    Attributes:
        hooked: in execution order; the ones that no input reached come last.
        left_out: layer name to the reason why no hook could be compiled into it.
    """

    hooked: tuple[Layer, ...]
    left_out: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write `layers.json` into `folder`."""
        write_document(folder / FILE_NAME, "layers", VERSION, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Layers":
        """Read `layers.json` from `folder`.

        Raises:
            FormatError: the file is missing, damaged, or of another version.
        """
        fields = read_document(folder / FILE_NAME, "layers", VERSION)
        try:
            hooked = tuple(
                Layer(
                    **{**layer, "axes": tuple(layer["axes"]), "parts": tuple(layer["parts"])},
                )
                for layer in fields["hooked"]
            )
            return cls(hooked, fields["left_out"])
        except (KeyError, TypeError) as error:
            raise FormatError(f"{FILE_NAME} is damaged: {error}") from None
