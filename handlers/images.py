"""A body that is a picture: PNG or JPEG, to the input that the model file says it is.

Pillow reads it. Where Pillow is not installed, a model takes every other form as before.
"""

import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from formats.image import Image
from formats.signature import Signature, TensorSpec
from handlers.datatypes import Buffer
from handlers.decode import Question
from handlers.errors import RequestError
from handlers.values import Array, check, working_dtype

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["from_image", "is_image"]

_BEGINNINGS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_FORMATS: Final = ("PNG", "JPEG")
_LEVELS: Final = 255
_MIDDLE: Final = 128
_DEEP: Final = 256  # 16-bit values to 8 bits
# A larger one is refused before it is unpacked: a PNG of a few kilobytes may unpack to gigabytes.
_MOST_PIXELS: Final = 32_000_000


def is_image(body: Buffer) -> bool:
    """Whether a body begins as a PNG or a JPEG does; no JSON does."""
    return bytes(body[:8]).startswith(_BEGINNINGS)


def from_image(body: Buffer, signature: Signature) -> Question:
    """Read a picture as one row.

    Raises:
        RequestError: it is no picture that can be read (400), it has too many pixels (413), or
            the model takes none (415).
    """
    spec, image = _input(signature)
    shape = spec.shape[1:] if signature.row_axis else spec.shape
    layout = image.layout(shape)
    array = _values(_pixels(body, image, spec, _size(shape, layout)), image)
    array = array[..., 0] if layout == "HW" else array
    array = np.moveaxis(array, -1, 0) if layout == "CHW" else array
    array = np.ascontiguousarray(array, dtype=working_dtype(spec.dtype))
    check(array, spec, shape)
    return Question(
        (array[np.newaxis] if signature.row_axis else array,), 1, signature.row_axis, "outputs"
    )


def _input(signature: Signature) -> tuple[TensorSpec, Image]:
    spec = signature.inputs[0]
    if len(signature.inputs) == 1 and spec.image is not None:
        return spec, spec.image
    raise RequestError(
        "unsupported_media_type",
        "the body is a picture, and the model does not say how one becomes its input",
        status=415,
        expected='a tensor; or "image": {...} at an input in the model file',
    )


def _size(shape: tuple[int, ...], layout: str) -> tuple[int, int]:
    """Return (width, height); -1 where the picture's own is taken."""
    return shape[layout.index("W")], shape[layout.index("H")]


def _pixels(body: Buffer, image: Image, spec: TensorSpec, size: tuple[int, int]) -> Array:
    """Return the picture, uint8 [height, width, channels]."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise RequestError(
            "unsupported_media_type",
            "the body is a picture, and Pillow, which reads it, is not installed here",
            status=415,
            expected="a tensor",
        ) from None
    try:
        with PIL.Image.open(io.BytesIO(body), formats=_FORMATS) as picture:
            _check_pixels(picture.size, spec)
            picture.load()
            upright = PIL.ImageOps.exif_transpose(picture)
    except RequestError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise _too_large(spec, ascii(str(error))[1:-1]) from None
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error and others.
        raise RequestError(
            "not_an_image",
            f"the picture cannot be read: {ascii(str(error))[1:-1]}"[:300],
            input=spec.name,
            expected="a whole PNG or JPEG",
        ) from None
    return _fitted(_flat(upright, image), image, size)


def _check_pixels(size: tuple[int, int], spec: TensorSpec) -> None:
    if size[0] * size[1] > _MOST_PIXELS:
        raise _too_large(spec, f"{size[0]} x {size[1]} pixels")


def _too_large(spec: TensorSpec, why: str) -> RequestError:
    return RequestError(
        "image_too_large",
        f"the picture is too large: {why}",
        status=413,
        input=spec.name,
        expected=f"at most {_MOST_PIXELS} pixels",
    )


def _flat(picture: "Picture", image: Image) -> "Picture":
    """Return the picture in the mode that is wanted, without transparency, inverted if need be."""
    import PIL.Image
    import PIL.ImageOps

    if picture.mode.startswith("I"):
        deep = np.asarray(picture).astype(np.int64) // _DEEP
        picture = PIL.Image.fromarray(deep.clip(0, _LEVELS).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        under = PIL.Image.new("RGBA", picture.size, "black" if _is_dark(image) else "white")
        picture = PIL.Image.alpha_composite(under, picture)
    flat = picture.convert(image.mode)
    if image.background is not None and (_border(flat) < _MIDDLE) != _is_dark(image):
        flat = PIL.ImageOps.invert(flat)
    return flat


def _is_dark(image: Image) -> bool:
    return image.background == "dark"


def _border(picture: "Picture") -> float:
    """Return the median of the outermost pixels."""
    values = np.asarray(picture)
    edges = (values[0], values[-1], values[:, 0], values[:, -1])
    return float(np.median(np.concatenate([edge.ravel() for edge in edges])))


def _fitted(picture: "Picture", image: Image, size: tuple[int, int]) -> Array:
    import PIL.Image
    import PIL.ImageOps

    wide = picture.width if size[0] == -1 else size[0]
    high = picture.height if size[1] == -1 else size[1]
    resample = PIL.Image.Resampling[image.resample.upper()]
    if image.fit == "pad":
        colour: Any = 0 if image.background != "light" else _LEVELS
        colour = colour if image.channels == 1 else (colour,) * image.channels
        picture = PIL.ImageOps.pad(picture, (wide, high), resample, color=colour)
    elif image.fit == "crop":
        picture = _cropped(picture, wide, high, image, resample)
    elif picture.size != (wide, high):
        picture = picture.resize((wide, high), resample)
    return np.asarray(picture).reshape(high, wide, image.channels)


def _cropped(picture: "Picture", wide: int, high: int, image: Image, resample: Any) -> "Picture":
    """Resize the shorter side and cut out the centre, as torchvision's Resize and CenterCrop do."""
    short = min(picture.size)
    wanted = image.resize or max(wide, high)
    scaled = tuple(
        max(int(wanted * side / short), part)
        for side, part in zip(picture.size, (wide, high), strict=True)
    )
    picture = picture.resize((scaled[0], scaled[1]), resample)
    left, top = round((picture.width - wide) / 2), round((picture.height - high) / 2)
    return picture.crop((left, top, left + wide, top + high))


def _values(pixels: Array, image: Image) -> Array:
    scaled = pixels.astype(np.float32) * np.float32(image.scale)
    return (scaled - np.asarray(image.mean, np.float32)) / np.asarray(image.std, np.float32)
