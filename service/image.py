"""Encoded bytes -> uint8 pixels, exactly as the training library's evaluation transform makes them. Pure.

The header is read first: type and size decide before a single pixel is decoded. Resize and crop follow
torchvision's `Resize` and `CenterCrop`, or transformers' processors, on Pillow images (same filter, same rounding), so
the pixels are equal, not just close.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.artifact import Preprocessing
from service.errors import ImageTooLarge, UndecodableImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# A 1×60000 picture would be resized to 224×13440000 before the crop: the bomb is in the shape, not in the size.
MAX_RESIZED_PIXELS = 2**22
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
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# The caller's limit is checked on every header below; Pillow's own would only add warnings under and errors over it.
Image.MAX_IMAGE_PIXELS = None


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
    image = _open(encoded)
    _refuse_bomb(image, recipe, max_pixels)
    return np.asarray(_crop(_resize(_load(image, recipe), recipe), recipe))  # (crop, crop, 3) uint8


def _open(encoded: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(encoded), formats=FORMATS)
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise UndecodableImage from error


def _refuse_bomb(image: Image.Image, recipe: Preprocessing, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"The image has {width}×{height} pixels; the limit is {max_pixels} in all.")
    resized_width, resized_height = _resized_size(width, height, recipe)
    if resized_width * resized_height > max(MAX_RESIZED_PIXELS, recipe.resize**2):
        raise ImageTooLarge(f"The image is {width}×{height} pixels, too long and narrow for this model.")


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


def _resized_size(width: int, height: int, recipe: Preprocessing) -> tuple[int, int]:
    shorter = recipe.resize
    if recipe.fit == "stretch":
        return shorter, shorter
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _resize(image: Image.Image, recipe: Preprocessing) -> Image.Image:
    size = _resized_size(*image.size, recipe)
    return image if size == image.size else image.resize(size, RESAMPLING[recipe.interpolation])


def _crop(image: Image.Image, recipe: Preprocessing) -> Image.Image:
    left, top = (_margin(side - recipe.crop, recipe) for side in image.size)
    return image.crop((left, top, left + recipe.crop, top + recipe.crop))


def _margin(excess: int, recipe: Preprocessing) -> int:
    return excess // 2 if recipe.centre == "floor" else round(excess / 2)
