"""Encoded bytes -> uint8 pixels, exactly as the training library's evaluation transform makes them. Pure.

The header is read first: type and size decide before a single pixel is decoded. Resize and crop follow
torchvision's `Resize` and `CenterCrop`, or transformers' processors, on Pillow images (same filter, same rounding), so
the pixels are equal, not just close.

Whole, upright JPEGs are decoded by simplejpeg, with libjpeg-turbo's exact settings that Pillow has as well: equal
pixels, without Pillow's overhead of 0.1 ms. Whatever it does not take for whole is for Pillow to judge.
"""

from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from service.artifact import Preprocessing
from service.errors import ImageTooLarge, UndecodableImage
from service.resample import Window, resample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# A 1×60000 picture would be resized to 224×13440000 before the crop: the bomb is in the shape, not in the size.
MAX_RESIZED_PIXELS = 2**22
# Pixels. What a resize takes grows with a row's length, and one of 25 million pixels makes a small PNG.
MAX_SIDE = 2**20
JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PNG_SIZE_END = 24
# Where an orientation can be written: the EXIF segment, or XMP.
ORIENTATION_MARKS = (b"Exif", b"tiff:Orientation")
WHITE = (255, 255, 255)
EIGHT_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)
ORIENTATION = 0x0112
# What undoes each value of the EXIF orientation tag.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The caller's limit is checked on every header below; Pillow's own would only add warnings under and errors over it.
Image.MAX_IMAGE_PIXELS = None


class Size(NamedTuple):
    """Of an image, in pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        """In all."""
        return self.width * self.height


class Bounds(NamedTuple):
    """How large an encoded image may be, and how many pixels it may have at each step."""

    bytes: int
    pixels: int


# Preprocessing takes less than handing the image to another thread: around 100 µs.
QUICK = Bounds(2**14, 64 * 64)
# Others can wait meanwhile: 1 ms for a photograph of a hundred kilobytes, and 15 to 30 for most of this size.
PROMPT = Bounds(2**20, 2**20)
# Few bytes can take long: each scan of a progressive JPEG goes over all of its pixels, and each colour profile of a PNG
# can grow to a megabyte. Encoders make about ten of the one and at most one of the other.
START_OF_SCAN, MOST_SCANS = b"\xff\xda", 16
PNG_PROFILE, MOST_PROFILES = b"iCCP", 1


def preprocess(encoded: bytes, recipe: Preprocessing, max_pixels: int) -> NDArray[np.uint8]:
    """Decode one image into the model's input pixels.

    Args:
        encoded: a JPEG, PNG, WebP or GIF (first frame) file.
        recipe: the card's preprocessing; its mean and std are applied in the graph, not here.
        max_pixels: width × height above which the image is refused from its header.

    Returns:
        uint8 `[crop, crop, 3]`, RGB.

    Raises:
        UndecodableImage: not one of the formats, truncated, or damaged.
        ImageTooLarge: more than `max_pixels`, or a shape that the resize would blow up.
    """
    return fit(decode(encoded, recipe, max_pixels), recipe)


def decode(encoded: bytes, recipe: Preprocessing, max_pixels: int) -> NDArray[np.uint8]:
    """The pixels of one image before they are resized, uint8 `[H, W, 3]`, RGB; otherwise as `preprocess`."""
    size = _jpeg_size(encoded)
    if size is not None:
        _refuse_bomb(size, recipe, max_pixels)
        pixels = _decode_jpeg(encoded, recipe)
        if pixels is not None:
            return pixels
    image = _open(encoded)
    _refuse_bomb(Size(*image.size), recipe, max_pixels)
    return np.asarray(_load(image, recipe))


def is_within(bounds: Bounds, encoded: bytes, recipe: Preprocessing) -> bool:
    """Whether an image, by its header, can be preprocessed within these bounds."""
    if len(encoded) > bounds.bytes:
        return False
    if encoded.count(START_OF_SCAN) > MOST_SCANS or encoded.count(PNG_PROFILE) > MOST_PROFILES:
        return False
    size = _jpeg_size(encoded) or _png_size(encoded)
    return size is not None and 0 < size.pixels <= bounds.pixels and _resized(size, recipe).pixels <= bounds.pixels


def ever_quick(recipe: Preprocessing) -> bool:
    """Whether there are images that are quick for this recipe."""
    return recipe.resize**2 <= QUICK.pixels


@lru_cache(1)  # asked for again as soon as it is known that the image is within bounds
def _jpeg_size(encoded: bytes) -> Size | None:
    """From the header of a JPEG in grey or YCbCr; None for everything else."""
    if not encoded.startswith(JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    return Size(width, height) if colours in ("Gray", "YCbCr") else None


def _png_size(encoded: bytes) -> Size | None:
    if not encoded.startswith(PNG_START) or len(encoded) < PNG_SIZE_END:
        return None
    width, height = (int.from_bytes(encoded[at : at + 4]) for at in (PNG_SIZE_END - 8, PNG_SIZE_END - 4))
    return Size(width, height)


def _decode_jpeg(encoded: bytes, recipe: Preprocessing) -> NDArray[np.uint8] | None:
    """Pixels `[H, W, 3]`; None where Pillow has to look: it may have to be turned, or is damaged."""
    if recipe.exif == "transpose" and any(mark in encoded for mark in ORIENTATION_MARKS):
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False)
    except ValueError:
        return None
    return pixels


def _open(encoded: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(encoded), formats=FORMATS)
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise UndecodableImage from error


def _refuse_bomb(size: Size, recipe: Preprocessing, max_pixels: int) -> None:
    if not size.pixels:
        raise UndecodableImage
    if size.pixels > max_pixels:
        raise ImageTooLarge(f"The image has {size.width}×{size.height} pixels; the limit is {max_pixels} in all.")
    too_long = max(size.width, size.height) > MAX_SIDE
    if too_long or _resized(size, recipe).pixels > max(MAX_RESIZED_PIXELS, recipe.resize**2):
        raise ImageTooLarge(f"The image is {size.width}×{size.height} pixels, too long and narrow for this model.")


def _load(image: Image.Image, recipe: Preprocessing) -> Image.Image:
    try:
        image.load()
        return _to_rgb(_upright(image) if recipe.exif == "transpose" else image)
    except Exception as error:  # as in _open
        raise UndecodableImage from error


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose writes all tags back and fails on images whose other tags are damaged.
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the orientation, and browsers show such images as stored
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        # A plain convert() would show the colours hidden under transparent pixels.
        rgba = image.convert("RGBA")
        page = Image.new("RGB", rgba.size, WHITE)
        page.paste(rgba, mask=rgba)
        return page
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    # convert() clips at 255 instead of scaling: all but the darkest 16-bit pixels would be white.
    return Image.fromarray(EIGHT_BIT[np.clip(np.asarray(image), 0, 65535)]).convert("RGB")


def _resized(size: Size, recipe: Preprocessing) -> Size:
    shorter = recipe.resize
    if recipe.fit == "stretch":
        return Size(shorter, shorter)
    if size.width <= size.height:
        return Size(shorter, int(shorter * size.height / size.width))
    return Size(int(shorter * size.width / size.height), shorter)


def fit(pixels: NDArray[np.uint8], recipe: Preprocessing) -> NDArray[np.uint8]:
    """Resize the shorter side and cut out the centre, `[H, W, 3]` -> `[crop, crop, 3]`."""
    size = Size(pixels.shape[1], pixels.shape[0])
    target = _resized(size, recipe)
    left, top = (_margin(side - recipe.crop, recipe) for side in target)
    centre = Window(left, top, recipe.crop, recipe.crop)
    if target != size:
        return resample(pixels, target.width, target.height, recipe.interpolation, centre)
    return centre.of(pixels)


def _margin(excess: int, recipe: Preprocessing) -> int:
    return excess // 2 if recipe.centre == "floor" else round(excess / 2)
