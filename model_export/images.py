"""The images that parity and golden replay are judged on: real ones, a colour chart, and noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.errors import ExportError
from service.artifact import Preprocessing
from service.errors import ServiceError
from service.image import decode, preprocess

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
MAX_PIXELS = 2**28
NOISE_SEED = 0
MAX_SHIPPED = 100
Pixels = NDArray[np.uint8]
Item = TypeVar("Item")


@dataclass(frozen=True)
class EncodedImage:
    """An image file's bytes."""

    media_type: str
    encoded: bytes
    name: str = ""


def shipped_images() -> list[EncodedImage]:
    """The held-out digits that ship in the package, PNG and JPEG in turn."""
    return images_in(Path(str(files("model_export") / "builtin" / "digits" / "samples")), most=MAX_SHIPPED)


def images_in(folder: Path, most: int) -> list[EncodedImage]:
    """Up to `most` images of a folder and the folders in it, evenly spread over their sorted paths.

    Raises:
        ExportError: there is none.
    """
    return [read_image(path) for path in spread(image_files(folder), most)]


def image_files(folder: Path) -> list[Path]:
    """PNG, JPEG, WebP and GIF files of a folder and the folders in it, sorted; hidden ones are left out, as shells do.

    Raises:
        ExportError: there is none.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder of images")
    visible = (path for path in folder.rglob("*") if not _hidden(path.relative_to(folder)))
    found = sorted(path for path in visible if path.suffix.lower() in MEDIA_TYPES and path.is_file())
    if not found:
        raise ExportError(f"there is no PNG, JPEG, WebP or GIF file in {folder}")
    return found


def _hidden(path: Path) -> bool:
    # Archives made on a Mac bring a `._name.png` for each image, and a folder __MACOSX: neither holds images.
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def read_image(path: Path) -> EncodedImage:
    """An image file."""
    return EncodedImage(MEDIA_TYPES[path.suffix.lower()], path.read_bytes(), str(path))


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Up to `most` of the items, evenly spaced: a sorted folder has its classes one after the other."""
    step = max(1.0, len(items) / most)
    return [items[int(position * step)] for position in range(min(most, len(items)))]


def colour_chart() -> EncodedImage:
    """Red grows to the right, green downwards, blue against both: a swap of channels or axes shows on it."""
    across, down = np.meshgrid(np.linspace(0, 255, 48), np.linspace(0, 255, 36))
    chart = np.stack([across, down, 255 - (across + down) / 2], axis=-1).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(chart).save(buffer, format="PNG")
    return EncodedImage("image/png", buffer.getvalue())


def to_pixels(image: EncodedImage, recipe: Preprocessing) -> Pixels:
    """The model's input pixels of one image, uint8 `[crop, crop, 3]`, as the service will make them.

    Raises:
        ExportError: the image cannot be decoded.
    """
    return _prepared(preprocess, image, recipe)


def decoded(image: EncodedImage, recipe: Preprocessing) -> Pixels:
    """All pixels of one image, uint8 `[H, W, 3]`, upright as the recipe says; otherwise as `to_pixels`."""
    return _prepared(decode, image, recipe)


def _prepared(how: Callable[[bytes, Preprocessing, int], Pixels], image: EncodedImage, recipe: Preprocessing) -> Pixels:
    try:
        return how(image.encoded, recipe, MAX_PIXELS)
    except ServiceError as error:
        raise ExportError(f"{image.name or 'an image'} cannot be used, remove it from the folder: {error}") from error


def noise(count: int, size: int) -> Pixels:
    """Random pixels, uint8 `[count, size, size, 3]`, the same each time."""
    return np.random.default_rng(NOISE_SEED).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
