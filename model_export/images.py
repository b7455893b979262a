"""The images that parity and golden replay are judged on: real ones, a colour chart, and noise."""

from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.errors import ExportError
from service.artifact import MediaType, Preprocessing
from service.errors import ServiceError
from service.image import preprocess

MEDIA_TYPES: dict[str, MediaType] = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
MAX_PIXELS = 2**28
MAX_REAL = 16
NOISE_SEED = 0
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class EncodedImage:
    """A PNG or JPEG file's bytes."""

    media_type: MediaType
    encoded: bytes
    name: str = ""


def shipped_images() -> list[EncodedImage]:
    """The held-out digits that ship in the package, PNG and JPEG in turn."""
    return _read_all(Path(str(files("model_export") / "builtin" / "digits" / "samples")))


def images_in(folder: Path) -> list[EncodedImage]:
    """Up to MAX_REAL PNG and JPEG files of a folder, by name.

    Raises:
        ExportError: there is none.
    """
    images = _read_all(folder)[:MAX_REAL]
    if not images:
        raise ExportError(f"there is no PNG or JPEG file in {folder}")
    return images


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
    try:
        return preprocess(image.encoded, recipe, MAX_PIXELS)
    except ServiceError as error:
        raise ExportError(f"the image {image.name} cannot be used: {error}") from error


def noise(count: int, size: int) -> Pixels:
    """Random pixels, uint8 `[count, size, size, 3]`, the same each time."""
    return np.random.default_rng(NOISE_SEED).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _read_all(folder: Path) -> list[EncodedImage]:
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder of images")
    return [
        EncodedImage(MEDIA_TYPES[path.suffix.lower()], path.read_bytes(), path.name)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in MEDIA_TYPES
    ]
