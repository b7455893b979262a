"""Encoded bytes -> uint8 pixels, exactly as the training library's evaluation transform makes them. Pure.

The header is read first: type and size decide before a single pixel is decoded. Resize and crop follow torchvision's
`Resize` and `CenterCrop` on Pillow images (same filter, same rounding), so the pixels are equal, not just close.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.artifact import Preprocessing
from service.errors import ImageTooLarge, UndecodableImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# A 1×60000 picture would be resized to 224×13440000 before the crop: the bomb is in the shape, not in the size.
MAX_RESIZED_PIXELS = 2**22
WHITE = (255, 255, 255, 255)
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
    return np.asarray(_crop(_resize(_to_rgb(_load(image, recipe)), recipe), recipe))  # (crop, crop, 3) uint8


def _open(encoded: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(encoded), formats=FORMATS)
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise UndecodableImage from error


def _refuse_bomb(image: Image.Image, recipe: Preprocessing, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"The image has {width}×{height} pixels; the limit is {max_pixels} in all.")
    resized_width, resized_height = _resized_size(width, height, recipe.resize)
    if resized_width * resized_height > max(MAX_RESIZED_PIXELS, recipe.resize**2):
        raise ImageTooLarge(f"The image is {width}×{height} pixels, too long and narrow for this model.")


def _load(image: Image.Image, recipe: Preprocessing) -> Image.Image:
    try:
        image.load()
        return ImageOps.exif_transpose(image) if recipe.exif == "transpose" else image
    except Exception as error:  # as in _open
        raise UndecodableImage from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        # A plain convert() would show the colours hidden under transparent pixels.
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    # convert() clips at 255 instead of scaling: all but the darkest 16-bit pixels would be white.
    levels = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((levels + 128) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")


def _resized_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _resize(image: Image.Image, recipe: Preprocessing) -> Image.Image:
    size = _resized_size(*image.size, recipe.resize)
    return image if size == image.size else image.resize(size, RESAMPLING[recipe.interpolation])


def _crop(image: Image.Image, recipe: Preprocessing) -> Image.Image:
    width, height = image.size
    left = round((width - recipe.crop) / 2.0)
    top = round((height - recipe.crop) / 2.0)
    return image.crop((left, top, left + recipe.crop, top + recipe.crop))
