"""The baseline: what a model's layers look like on the inputs it was built for."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from formats.document import FormatError, read_document, write_document

__all__ = ["FILE_NAME", "STATISTICS", "Baseline", "Summary"]

VERSION: Final = 1
FILE_NAME: Final = "baseline.json"
STATISTICS: Final = ("mean", "std", "min", "max", "zero_fraction")
"""What is summarised of each layer; see `formats.activation.LayerStatistics`."""


@dataclass(frozen=True)
class Summary:
    """How one statistic of one layer is distributed over the rows.

    Attributes:
        rows: how many rows had a finite value; a layer in a branch has those that took it.
        mean: of the statistic over these rows.
        spread: its population standard deviation over these rows.
        sketch: its quantiles: an Apache DataSketches t-digest of doubles, serialised, in base64.
            Sketches of several files can be merged.
    """

    rows: int
    mean: float
    spread: float
    sketch: str


@dataclass(frozen=True)
class Baseline:
    """Statistics of observed layers over calibration inputs, one row at a time.

    Attributes:
        source: the function of the model file that the inputs came from: "calibration" or
            "examples".
        rows: how many rows there were; single inputs for a model without a row axis.
        layers: activation key (see `formats.activation`) to statistic to its summary.
        units: activation key of a ReLU-like layer to the fraction of rows in which each of its
            units was active, of up to 500 of them; empty in archives made before it was kept.
        score: how the rows' out-of-distribution scores are distributed (`formats.score`); None in
            archives of before there was one, and where no layer is observed.
    """

    source: str
    rows: int
    layers: dict[str, dict[str, Summary]]
    units: dict[str, list[float]] = field(default_factory=dict)
    score: Summary | None = None

    def write(self, folder: Path) -> None:
        """Write `baseline.json` into `folder`."""
        write_document(folder / FILE_NAME, "baseline", VERSION, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Baseline":
        """Read `baseline.json` from `folder`.

        Raises:
            FormatError: the file is missing, damaged, or of another version.
        """
        fields = read_document(folder / FILE_NAME, "baseline", VERSION)
        try:
            layers = {
                key: {name: Summary(**summary) for name, summary in statistics.items()}
                for key, statistics in fields["layers"].items()
            }
            units = {key: list(map(float, own)) for key, own in fields.get("units", {}).items()}
            score = fields.get("score")
            return cls(
                fields["source"],
                fields["rows"],
                layers,
                units=units,
                score=None if score is None else Summary(**score),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{FILE_NAME} is damaged: {error}") from None
