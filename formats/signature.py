"""The signature: what a model takes and what it answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from formats.document import FormatError, read_document, write_document
from formats.image import Image

VERSION: Final = 1
FILE_NAME: Final = "signature.json"

DTYPES: Final = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)
"""The element types a served tensor may have, by torch's own names."""


@dataclass(frozen=True)
class TensorSpec:
    """One named input or output.

    Attributes:
        name: as clients write it.
        dtype: one of `DTYPES`.
        shape: one entry per axis; -1 is a free dimension.
        minimum: least value an input may have, or None.
        maximum: greatest value an input may have, or None.
        image: how a picture becomes this input, or None where it does not.
        labels: class names along the last axis of an output; empty when it has none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float | None = None
    maximum: float | None = None
    image: Image | None = None
    labels: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether its values are floating-point numbers."""
        return "float" in self.dtype

    def __str__(self) -> str:
        """Return e.g. `float32[-1, 8, 8]`."""
        return f"{self.dtype}{list(self.shape)}"

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values, without the fields that are not set."""
        fields: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }
        if self.minimum is not None:
            fields["minimum"] = self.minimum
        if self.maximum is not None:
            fields["maximum"] = self.maximum
        if self.image is not None:
            fields["image"] = self.image.to_json()
        if self.labels:
            fields["labels"] = list(self.labels)
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TensorSpec":
        """Read what `to_json` returned.

        Raises:
            FormatError: the dtype is not one that is served, or a picture cannot become it so.
        """
        if fields["dtype"] not in DTYPES:
            raise FormatError(f"tensor {fields['name']!r} has dtype {fields['dtype']!r}")
        return cls(
            name=fields["name"],
            dtype=fields["dtype"],
            shape=tuple(fields["shape"]),
            minimum=fields.get("minimum"),
            maximum=fields.get("maximum"),
            image=Image.from_json(fields["image"]) if "image" in fields else None,
            labels=tuple(fields.get("labels", ())),
        )


@dataclass(frozen=True)
class Signature:
    """A model's interface.

    Attributes:
        model: the name it is served under.
        model_version: e.g. "1.0".
        description: one line, for people.
        inputs: in the order of `forward`'s parameters.
        outputs: in the order of `formats.flatten` over what `forward` returns.
        row_axis: whether axis 0 of every input and output counts rows. Only then may a
            request leave the axis out for a single row.
    """

    model: str
    model_version: str
    description: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    row_axis: bool

    def write(self, folder: Path) -> None:
        """Write `signature.json` into `folder`."""
        write_document(
            folder / FILE_NAME,
            "signature",
            VERSION,
            {
                "model": self.model,
                "model_version": self.model_version,
                "description": self.description,
                "row_axis": self.row_axis,
                "inputs": [spec.to_json() for spec in self.inputs],
                "outputs": [spec.to_json() for spec in self.outputs],
            },
        )

    @classmethod
    def read(cls, folder: Path) -> "Signature":
        """Read `signature.json` from `folder`.

        Raises:
            FormatError: the file is missing, damaged, or of another version.
        """
        fields = read_document(folder / FILE_NAME, "signature", VERSION)
        try:
            return cls(
                model=fields["model"],
                model_version=fields["model_version"],
                description=fields["description"],
                inputs=tuple(TensorSpec.from_json(spec) for spec in fields["inputs"]),
                outputs=tuple(TensorSpec.from_json(spec) for spec in fields["outputs"]),
                row_axis=fields["row_axis"],
            )
        except KeyError as error:
            raise FormatError(f"{FILE_NAME} lacks the field {error}") from None
