"""An attribution as a picture: red speaks for the explained value, blue against it.

The colour is a share of the largest magnitude in the picture; white is nothing.
"""

import io
from typing import Final

import numpy as np

from formats.signature import Signature
from handlers.errors import RequestError
from handlers.values import Array

__all__ = ["is_picture", "to_png"]

_CHANNELS: Final = (1, 3, 4)
_LEAST_SIDE: Final = 256
"""Smaller maps are enlarged, each value to a square, until the longer side has this many pixels."""

_MOST_VALUES: Final = 32_000_000


def is_picture(signature: Signature) -> bool:
    """Tell whether a model has one floating-point input, and rows of it are pictures."""
    inputs = [spec for spec in signature.inputs if spec.is_float]
    shape = inputs[0].shape[signature.row_axis :] if len(inputs) == 1 else ()
    return len(shape) == 2 or (len(shape) == 3 and {shape[0], shape[2]} & {*_CHANNELS, -1} != set())


def to_png(attribution: Array) -> bytes:
    """Draw the attribution of one row.

    Args:
        attribution: shape [height, width], [channels, height, width] or [height, width,
            channels], of 1, 3 or 4 channels, which are added up.

    Returns:
        A PNG in RGB.

    Raises:
        RequestError: it has no such shape, or Pillow is missing (status 501).
    """
    try:
        import PIL.Image
    except ImportError:
        raise RequestError(
            "not_available",
            "pictures are written by Pillow, which is not installed in this server",
            status=501,
            expected="Accept: application/json",
        ) from None
    values = np.nan_to_num(_flat(attribution), nan=0.0)
    limit = np.abs(values).max(initial=0) or 1.0
    share = np.clip(values / limit, -1, 1)
    fade = 255 * (1 - np.abs(share))
    red, blue = np.where(share < 0, fade, 255), np.where(share > 0, fade, 255)
    pixels = np.stack([red, fade, blue], axis=-1).round().astype(np.uint8)
    times = max(1, -(-_LEAST_SIDE // max(values.shape)))
    pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
    written = io.BytesIO()
    PIL.Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def _flat(attribution: Array) -> Array:
    values = attribution.astype(np.float64)
    if values.ndim == 3 and values.shape[0] in _CHANNELS:
        values = values.sum(axis=0)
    elif values.ndim == 3 and values.shape[2] in _CHANNELS:
        values = values.sum(axis=2)
    if values.ndim != 2 or not 0 < values.size <= _MOST_VALUES:
        raise RequestError(
            "not_acceptable",
            f"an attribution of shape {list(attribution.shape)} is no picture",
            status=406,
            expected="Accept: application/json",
        )
    return values
