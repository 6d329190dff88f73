"""What the graphs that AOTInductor compiled take and return: `aot.json` in an archive."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from formats.document import FormatError, read_document, write_document

__all__ = ["FILE_NAME", "OBSERVED_FILE", "PLAIN_FILE", "Compiled"]

FILE_NAME: Final = "aot.json"
PLAIN_FILE: Final = "aot.pt2"
OBSERVED_FILE: Final = "aot-observed.pt2"

_VERSION: Final = 1


@dataclass(frozen=True)
class Compiled:
    """How to read what the compiled graphs return.

    The plain graph returns the outputs. The observed graph returns them, then all vectors of
    statistics joined into one, then the number of units and of values in each unit of every
    record, int64.

    Attributes:
        paths: of the outputs, as `formats.structure.answered` has them.
        records: in the order of the vectors, each (position in `layers.json`, call, part).
        layers: how many layers `layers.json` has.
    """

    paths: tuple[str, ...]
    records: tuple[tuple[int, int, int], ...]
    layers: int

    def write(self, folder: Path) -> None:
        """Write `aot.json` into `folder`."""
        write_document(folder / FILE_NAME, "compiled", _VERSION, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Compiled":
        """Read `aot.json` from `folder`.

        Raises:
            FormatError: the file is missing, damaged, or of another version.
        """
        fields = read_document(folder / FILE_NAME, "compiled", _VERSION)
        try:
            records = tuple((layer, call, part) for layer, call, part in fields["records"])
            return cls(tuple(fields["paths"]), records, fields["layers"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{FILE_NAME} is damaged: {error}") from None

    def codes(self, sizes: list[int]) -> list[list[int]]:
        """Return the integers of each layer as a compiled hook writes them.

        Args:
            sizes: number of units and values in each unit, record by record.
        """
        codes: list[list[int]] = [[] for _ in range(self.layers)]
        for number, (layer, call, part) in enumerate(self.records):
            codes[layer] += [call, part, 1, sizes[2 * number], sizes[2 * number + 1]]
        return codes
