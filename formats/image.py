"""How a picture becomes an input: declared in the model file, followed by the handler."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

from formats.document import FormatError

Fit = Literal["stretch", "crop", "pad"]
Mode = Literal["L", "RGB"]
Resample = Literal["nearest", "bilinear", "bicubic", "box", "lanczos"]
Background = Literal["dark", "light"]

CHANNELS: Final = {"L": 1, "RGB": 3}
_NO_OFFSET: Final = (0.0,)
_NO_SCALE: Final = (1.0,)


@dataclass(frozen=True)
class Image:
    """The steps from a PNG or JPEG to an input, in this order.

    Attributes:
        mode: "L", one channel of luminance, or "RGB".
        background: "dark" or "light": a picture whose border is the other is inverted, and
            transparent pixels become it. None leaves it, with white for transparent pixels.
        resize: pixels of the shorter side before a crop; None for just what the crop needs.
        fit: how another aspect ratio becomes the input's: "stretch" it, "crop" what sticks out
            around the centre, or "pad" with the background.
        resample: the filter, by Pillow's name; all but "nearest" are antialiased.
        scale: what a pixel, 0 to 255, is multiplied with.
        mean: subtracted after that, for each channel or for all.
        std: divided by after that, for each channel or for all.
    """

    mode: Mode = "RGB"
    background: Background | None = None
    resize: int | None = None
    fit: Fit = "stretch"
    resample: Resample = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = _NO_OFFSET
    std: tuple[float, ...] = _NO_SCALE

    @property
    def channels(self) -> int:
        """How many channels it has: 1 or 3."""
        return CHANNELS[self.mode]

    def to_json(self) -> dict[str, Any]:
        """Return the steps as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, document: Any) -> "Image":
        """Read what `to_json` returned, or what a model file declares.

        Raises:
            FormatError: naming what is not a step, or has a value that it cannot have.
        """
        if not isinstance(document, dict):
            raise FormatError(f"{document!r} is not a dict")
        known = [field.name for field in fields(cls)]
        for name in document:
            if name not in known:
                raise FormatError(f"{name!r} is not one of {', '.join(known)}")
        numbers = {
            name: _numbers(name, document[name]) for name in ("mean", "std") if name in document
        }
        image = cls(**{**document, **numbers})
        image._check()
        return image

    def layout(self, shape: tuple[int, ...]) -> Literal["HW", "CHW", "HWC"]:
        """Return how the axes of one picture in an input are to be read.

        Args:
            shape: of the input without its row axis.

        Raises:
            FormatError: a picture of this mode does not have such a shape.
        """
        if len(shape) == 2 and self.channels == 1:
            return "HW"
        if len(shape) == 3 and shape[0] == self.channels:
            return "CHW"
        if len(shape) == 3 and shape[2] == self.channels:
            return "HWC"
        raise FormatError(
            f"a picture of mode {self.mode} has {self.channels} "
            f"channel{'s' * (self.channels > 1)}, and the input has the shape {list(shape)}"
        )

    def _check(self) -> None:
        choices = {"mode": Mode, "fit": Fit, "resample": Resample}
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise FormatError(
                    f"{name} is {getattr(self, name)!r}, not {' or '.join(get_args(choice))}"
                )
        if self.background not in (None, *get_args(Background)):
            raise FormatError(f"background is {self.background!r}, not dark, light or None")
        if self.resize is not None and (type(self.resize) is not int or self.resize < 1):
            raise FormatError(f"resize is {self.resize!r}, not a number of pixels or None")
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)):
            raise FormatError(f"scale is {self.scale!r}, not a number")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise FormatError(
                    f"{name} has {len(getattr(self, name))} numbers for {self.channels} channels"
                )
        if 0 in self.std:
            raise FormatError("std has a 0, by which nothing can be divided")


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(type(number) in (int, float) for number in values):
        raise FormatError(f"{name} is {value!r}, not a number or one for each channel")
    return tuple(float(number) for number in values)
