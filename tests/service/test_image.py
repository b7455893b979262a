"""Pixels equal to the training library's, and a typed error for everything else that strangers send."""

import random
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from service.artifact import Preprocessing
from service.errors import ImageTooLarge, ServiceError, UndecodableImage
from service.image import QUICK, is_within, preprocess

LIMIT = 1_000_000
BILINEAR = Image.Resampling.BILINEAR
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def recipe(resize: int = 16, crop: int = 16, **changes: object) -> Preprocessing:
    fields = {"interpolation": "bilinear", "mean": (0, 0, 0), "std": (1, 1, 1)} | changes
    return Preprocessing.model_validate({"resize": resize, "crop": crop} | fields)


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=120)
@given(
    width=st.integers(1, 130),
    height=st.integers(1, 130),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_jpegs_have_the_pixels_that_pillow_gives(
    width: int, height: int, quality: int, subsampling: int, progressive: bool, mode: str
) -> None:
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    encoded = encode(noise(width, height, seed=width + height).convert(mode), "JPEG", **options)
    side = min(width, height)
    expected = torchvision_transform(Image.open(BytesIO(encoded)).convert("RGB"), side, side, BILINEAR)
    np.testing.assert_array_equal(preprocess(encoded, recipe(side, side), LIMIT), expected)


@pytest.mark.parametrize("side", [16, 20], ids=["width", "height"])
def test_a_png_without_width_or_height_is_refused_and_never_quick(side: int) -> None:
    encoded = bytearray(encode(noise(8, 8)))
    encoded[side : side + 4] = bytes(4)
    encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    assert not is_within(QUICK, bytes(encoded), recipe())
    with pytest.raises(UndecodableImage):
        preprocess(bytes(encoded), recipe(), LIMIT)


@pytest.mark.parametrize("cut", [2, 20, 200, 600, -100, -2])
def test_a_jpeg_that_ends_early_is_refused_as_pillow_refuses_it(cut: int) -> None:
    whole = encode(noise(32, 32), "JPEG")
    with pytest.raises(OSError):  # noqa: PT011  Pillow's messages differ by where it ends
        Image.open(BytesIO(whole[:cut])).load()
    with pytest.raises(UndecodableImage):
        preprocess(whole[:cut], recipe(), LIMIT)


def test_what_is_quick_has_few_pixels_at_every_step() -> None:
    assert is_within(QUICK, encode(noise(32, 32), "JPEG"), recipe(32, 32))
    assert is_within(QUICK, encode(noise(32, 32), "PNG"), recipe(32, 32))
    assert not is_within(QUICK, encode(noise(32, 32), "JPEG"), recipe(256, 224))
    assert not is_within(QUICK, encode(noise(400, 400), "JPEG", quality=1), recipe(32, 32))
    assert not is_within(QUICK, encode(noise(32, 32), "GIF"), recipe(32, 32))
    progressive, png = encode(noise(32, 32), "JPEG", progressive=True), encode(noise(32, 32), "PNG")
    assert is_within(QUICK, progressive, recipe(32, 32))
    assert not is_within(QUICK, progressive[:-2] + 9 * b"\xff\xda\0\2" + progressive[-2:], recipe(32, 32))
    assert not is_within(QUICK, png[:33] + 2 * b"\0\0\0\0iCCP\0\0\0\0" + png[33:], recipe(32, 32))
    assert not is_within(QUICK, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", recipe(32, 32))


def torchvision_transform(image: Image.Image, resize: int, crop: int, resampling: Image.Resampling) -> np.ndarray:
    """torchvision 0.28 `Resize(resize)` and `CenterCrop(crop)` on a Pillow image, written out from functional.py."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = resize, int(resize * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize((new_width, new_height), resampling)
    top = int(round((new_height - crop) / 2.0))  # noqa: RUF046  as torchvision writes it
    left = int(round((new_width - crop) / 2.0))  # noqa: RUF046
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@settings(max_examples=60)
@given(
    width=st.integers(8, 400),
    height=st.integers(8, 400),
    sizes=st.sampled_from([(256, 224), (232, 224), (235, 224), (32, 32), (33, 32)]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_resize_and_crop_equal_torchvisions(
    width: int, height: int, sizes: tuple[int, int], interpolation: str
) -> None:
    image = noise(width, height, seed=width * 1000 + height)
    expected = torchvision_transform(image, *sizes, Image.Resampling[interpolation.upper()])
    got = preprocess(encode(image), recipe(*sizes, interpolation=interpolation), LIMIT)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("colour", [RED, GREEN, BLUE])
def test_channels_are_in_the_order_red_green_blue(form: str, colour: tuple[int, int, int]) -> None:
    pixels = preprocess(encode(Image.new("RGB", (16, 16), colour), form), recipe(), LIMIT)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.mean(axis=(0, 1)), colour, atol=3)


def test_grey_palette_and_cmyk_become_rgb() -> None:
    for mode in ("L", "P", "1", "CMYK"):
        image = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
        pixels = preprocess(encode(image, "JPEG" if mode == "CMYK" else "PNG"), recipe(), LIMIT)
        assert pixels.min() >= 254, mode


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_show_white_and_not_the_colour_under_them(mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0)).convert(mode)
    options = {"transparency": 0} if mode == "P" else {}
    pixels = preprocess(encode(image, "PNG", **options), recipe(), LIMIT)
    assert pixels.min() == 255


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = np.full((16, 16), 257 * 100, dtype=np.uint16)
    pixels = preprocess(encode(Image.fromarray(levels)), recipe(), LIMIT)
    assert (pixels.min(), pixels.max()) == (100, 100)


def test_the_exif_orientation_is_applied_or_ignored_as_the_card_says() -> None:
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))  # red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: red top, blue bottom
    encoded = encode(image, "PNG", exif=exif)
    turned = preprocess(encoded, recipe(16, 16, exif="transpose"), LIMIT)
    as_stored = preprocess(encoded, recipe(16, 16, exif="ignore"), LIMIT)
    assert turned[0].mean(axis=0)[0] > 200
    assert turned[-1].mean(axis=0)[2] > 200
    assert as_stored[:, 0].mean(axis=0)[0] > 200
    assert as_stored[:, -1].mean(axis=0)[2] > 200


def test_pixels_are_counted_from_the_header() -> None:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)  # 1 bit a pixel, grey
    whole = encode(Image.new("1", (8, 8)))
    header = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    header_only = whole[:8] + header + whole[8 + len(header) :]
    with pytest.raises(ImageTooLarge, match="30000×30000"):
        preprocess(header_only, recipe(), 40_000_000)


def test_the_limit_itself_is_still_allowed() -> None:
    assert preprocess(encode(noise(100, 50)), recipe(), 5000).shape == (16, 16, 3)
    with pytest.raises(ImageTooLarge):
        preprocess(encode(noise(100, 50)), recipe(), 4999)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_shape_that_the_resize_would_blow_up_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge, match="narrow"):
        preprocess(encode(Image.new("L", size)), recipe(256, 224), LIMIT)


def test_a_side_that_would_take_the_resize_memory_without_end_is_refused() -> None:
    stretched = recipe(fit="stretch")
    assert preprocess(encode(Image.new("L", (2**20, 1))), stretched, 2**21).shape == (16, 16, 3)
    with pytest.raises(ImageTooLarge, match="1048577×1"):
        preprocess(encode(Image.new("L", (2**20 + 1, 1))), stretched, 2**21)


@pytest.mark.parametrize(
    "encoded",
    [
        b"hello",
        b"%PDF-1.7",
        b"<html></html>",
        b"GIF89a",
        encode(noise(64, 64), "JPEG")[:-200],
        encode(noise(64, 64), "PNG")[:-200],
        encode(noise(64, 64), "TIFF"),
        encode(noise(64, 64), "BMP"),
        encode(noise(64, 64), "PPM"),
    ],
    ids=["text", "pdf", "html", "gif header", "cut jpeg", "cut png", "tiff", "bmp", "ppm"],
)
def test_what_is_no_complete_image_of_a_served_format_is_undecodable(encoded: bytes) -> None:
    with pytest.raises(UndecodableImage):
        preprocess(encoded, recipe(), LIMIT)


def test_a_palette_with_too_many_transparent_entries_is_undecodable() -> None:
    encoded = encode(Image.new("P", (8, 8)), "PNG")
    chunk = b"tRNS" + bytes(300)
    pixels = encoded.index(b"IDAT") - 4
    transparency = struct.pack(">I", 300) + chunk + struct.pack(">I", zlib.crc32(chunk))
    damaged = encoded[:pixels] + transparency + encoded[pixels:]
    with pytest.raises(UndecodableImage):
        preprocess(damaged, recipe(), LIMIT)


def test_other_exif_tags_may_be_nonsense() -> None:
    width_in_words = struct.pack("<HHI4s", 0x0100, 2, 4, b"wide")  # a number by the standard, and here a text
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + width_in_words + turned + bytes(4)
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    pixels = preprocess(encode(image, "PNG", exif=exif), recipe(), LIMIT)
    assert pixels[0].mean(axis=0)[0] > 200
    assert pixels[-1].mean(axis=0)[2] > 200


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_undoes_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = noise(16, 16)
    encoded = encode(image, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(encoded)))
    np.testing.assert_array_equal(preprocess(encoded, recipe(), LIMIT), np.asarray(expected.convert("RGB")))


MODES = ["RGB PNG", "RGB JPEG", "RGB WEBP", "RGB GIF", "P PNG", "L PNG", "LA PNG", "RGBA PNG", "I;16 PNG", "CMYK JPEG"]


@pytest.mark.filterwarnings("ignore")  # a decoder may warn before it gives up
@pytest.mark.parametrize("kind", MODES)
def test_damaged_images_give_pixels_or_a_typed_error(kind: str) -> None:
    mode, form = kind.split()
    image = (
        Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))
        if mode == "I;16"
        else noise(40, 30).convert(mode)
    )
    whole = encode(image, form)
    damage = random.Random(kind)
    for _ in range(100):
        broken = bytearray(whole)
        for _ in range(damage.randint(1, 8)):
            broken[damage.randrange(len(broken))] = damage.randrange(256)
        try:
            pixels = preprocess(bytes(broken[: damage.randint(1, len(broken))]), recipe(), LIMIT)
        except ServiceError:
            continue
        assert pixels.shape == (16, 16, 3)
