"""Pictures as requests: what they become, and what is refused."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageDraw, ImageOps

from formats.document import FormatError
from formats.image import Image
from formats.signature import Signature, TensorSpec
from handlers.errors import RequestError
from handlers.images import from_image, is_image
from handlers.model import Model
from handlers.service import Request, Service


def signature(image, shape=(-1, 8, 8), dtype="float32", **bounds):
    spec = TensorSpec("image", dtype, shape, image=image, **bounds)
    row_axis = shape[0] == -1
    return Signature("m", "1.0", "", (spec,), (TensorSpec("y", "float32", (-1,)),), row_axis)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def array_of(picture, image, shape=(-1, 8, 8), **more):
    [array] = from_image(encoded(picture), signature(image, shape, **more)).arrays
    return array


GREY = Image(mode="L", scale=1.0)


def test_pixels_arrive_as_they_are():
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    got = array_of(Pillow.fromarray(values), GREY)
    assert got.dtype == np.float32
    assert got.shape == (1, 8, 8)
    assert np.array_equal(got[0], values)


@pytest.mark.parametrize(
    ("shape", "axes"), [((-1, 3, 4, 5), (2, 0, 1)), ((-1, 4, 5, 3), (0, 1, 2))]
)
def test_channels_scale_mean_and_std(shape, axes):
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    image = Image(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    [got] = array_of(Pillow.fromarray(values), image, shape)
    wanted = (values / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(got, wanted.transpose(axes), atol=1e-6)


def test_a_model_without_rows_and_integer_inputs_take_pictures():
    values = np.full((8, 8), 7, np.uint8)
    got = array_of(Pillow.fromarray(values), GREY, (8, 8), dtype="uint8")
    assert got.shape == (8, 8)
    assert got.dtype == np.uint8
    assert (got == 7).all()


def test_free_sizes_are_the_pictures_own():
    assert array_of(Pillow.new("L", (6, 4)), GREY, (-1, -1, -1)).shape == (1, 4, 6)


def test_fits():
    wide = Pillow.new("L", (40, 10), 200)
    ImageDraw.Draw(wide).rectangle((0, 0, 9, 9), fill=50)
    resample = "nearest"
    stretched = array_of(wide, Image(mode="L", scale=1.0, resample=resample))[0]
    assert np.array_equal(stretched[0], [50, 50, 200, 200, 200, 200, 200, 200])
    cropped = array_of(wide, Image(mode="L", scale=1.0, resample=resample, fit="crop"))[0]
    assert (cropped == 200).all()
    padded = array_of(wide, Image(mode="L", scale=1.0, resample=resample, fit="pad"))[0]
    assert not padded[:3].any()
    assert not padded[5:].any()
    assert np.array_equal(padded[3], [50, 50, 200, 200, 200, 200, 200, 200])


def test_a_crop_is_that_of_resize_and_centre_crop():
    values = np.random.default_rng(1).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    picture = Pillow.fromarray(values)
    got = array_of(picture, Image(fit="crop", resize=32, scale=1.0), (-1, 28, 28, 3))[0]
    by_hand = picture.resize((44, 32), Pillow.Resampling.BILINEAR).crop((8, 2, 36, 30))
    assert np.array_equal(got, np.asarray(by_hand))


def test_a_background_is_made_what_the_model_knows():
    drawn = Pillow.new("L", (8, 8), 255)
    drawn.putpixel((3, 3), 0)
    dark = Image(mode="L", scale=1.0, background="dark")
    assert np.array_equal(array_of(drawn, dark), array_of(ImageOps.invert(drawn), dark))
    assert array_of(drawn, dark)[0, 3, 3] == 255
    clear = Pillow.new("RGBA", (8, 8), (9, 9, 9, 0))
    assert not array_of(clear, dark).any()
    assert (array_of(clear, GREY) == 255).all()


def test_sixteen_bits_become_eight():
    deep = Pillow.fromarray(np.full((8, 8), 40_000, np.uint16))
    assert (array_of(deep, GREY) == 40_000 // 256).all()


def test_a_photograph_is_turned_upright():
    picture = Pillow.new("L", (8, 4))
    picture.putpixel((0, 0), 255)
    exif = picture.getexif()
    exif[0x0112] = 6  # a quarter turn clockwise
    body = encoded(picture, "PNG", exif=exif)
    [array] = from_image(body, signature(GREY, (-1, -1, -1))).arrays
    assert array.shape == (1, 8, 4)
    assert array[0, 0, 3] == 255


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def bomb(side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        (encoded(Pillow.new("L", (90, 90)))[:60], "not_an_image", 400),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "not_an_image", 400),
        (b"\xff\xd8\xff" + b"[METRICS]" * 9, "not_an_image", 400),
        (bomb(60_000), "image_too_large", 413),
        (bomb(9_500), "image_too_large", 413),
        (bomb(5_000), "not_an_image", 400),
        (bomb(0), "not_an_image", 400),
    ],
)
def test_what_is_no_picture_is_refused(body, code, status):
    assert is_image(body)
    with pytest.raises(RequestError) as caught:
        from_image(body, signature(GREY))
    assert (caught.value.code, caught.value.status) == (code, status)
    assert caught.value.message.isascii()


def test_bounds_hold_for_pictures_too():
    with pytest.raises(RequestError, match="200"):
        array_of(Pillow.new("L", (8, 8), 200), GREY, minimum=0, maximum=16)


def test_what_cannot_be_declared():
    for wrong, words in [
        ({"mode": "CMYK"}, "mode is 'CMYK'"),
        ({"size": 8}, "'size' is not one of"),
        ({"mode": "L", "mean": [0.1, 0.2, 0.3]}, "mean has 3 numbers for 1 channels"),
        ({"std": 0}, "std has a 0"),
        ({"resize": 0.5}, "resize is 0.5"),
        ({"background": "blue"}, "background is 'blue'"),
        ("L", "'L' is not a dict"),
    ]:
        with pytest.raises(FormatError) as caught:
            Image.from_json(wrong)
        assert words in str(caught.value)
    assert Image.from_json(Image(mode="L", mean=(0.5,)).to_json()) == Image(mode="L", mean=(0.5,))
    with pytest.raises(FormatError, match="a picture of mode RGB has 3 channels"):
        Image().layout((8, 8))


@pytest.fixture(scope="module")
def digits(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    with zipfile.ZipFile(exported("digits").archive) as archive:
        archive.extractall(folder)
    return Service(Model(folder, torch.device("cpu")))


def drawn_seven(side):
    picture = Pillow.new("L", (side, side), 255)
    stroke = ImageDraw.Draw(picture)
    scale = side / 8
    points = [(1.8, 1.0), (5.8, 1.0), (3.6, 7.2)]
    stroke.line([(x * scale, y * scale) for x, y in points], fill=0, width=max(1, round(scale)))
    return picture


@pytest.mark.parametrize("side", [64, 300])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_drawn_seven_is_a_seven(digits, side, kind):
    body = encoded(drawn_seven(side), kind)
    for headers in ({}, {"content-type": f"image/{kind.lower()}"}):
        [answer] = digits.handle([Request(body, headers)])
        assert answer.status == 200, answer.body
        assert json.loads(answer.body)["labels"] == {"probabilities": "7"}


def test_pictures_share_a_batch_with_everyone(digits):
    picture = Request(encoded(drawn_seven(64)))
    other = Request(json.dumps({"inputs": [[1] * 8] * 8}).encode())
    broken = Request(encoded(drawn_seven(64))[:80], {"content-type": "image/png"})
    together = digits.handle([picture, other, broken, picture])
    assert [answer.status for answer in together] == [200, 200, 400, 200]
    for one, answer in zip((picture, other), together, strict=False):
        [alone] = digits.handle([one])
        found = [json.loads(body)["outputs"]["probabilities"] for body in (answer.body, alone.body)]
        assert np.allclose(*found, rtol=1e-4, atol=1e-6)


def test_a_model_without_a_decoder_says_so(exported, tmp_path):
    with zipfile.ZipFile(exported("control_flow").archive) as archive:
        archive.extractall(tmp_path)
    [answer] = Service(Model(tmp_path, torch.device("cpu"))).handle(
        [Request(encoded(drawn_seven(64)))]
    )
    assert answer.status == 415
    assert b"the model does not say how one becomes its input" in answer.body
