"""Resize and crop in one step, for only the pixels that survive the crop, equal to Pillow's.

The kernel is `resample.c`, which is compiled when the package is installed. Where it could not be (no compiler), or
where its pixels are not those of the Pillow that is installed, Pillow resizes and numpy crops: slower, and the same.
"""

import ctypes
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LIBRARY = Path(__file__).with_name("libresample.so")
# As the kernel numbers them; for others there is Pillow.
FILTERS = {"bilinear": 0, "bicubic": 1, "lanczos": 2}
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Pixels = NDArray[np.uint8]


class Window(NamedTuple):
    """A part of an image, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int

    def of(self, pixels: Pixels) -> Pixels:
        """That part of an image `[H, W, 3]`, as a view."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def resample(pixels: Pixels, width: int, height: int, interpolation: str, window: Window) -> Pixels:
    """Resize an image to width × height and cut out a window.

    Args:
        pixels: uint8 `[H, W, 3]`.
        width: of the whole resized image.
        height: likewise.
        interpolation: a key of RESAMPLING.
        window: what is returned, within width × height.

    Returns:
        uint8 `[window.height, window.width, 3]`, equal to that part of Pillow's `Image.resize`.
    """
    if KERNEL is not None and interpolation in FILTERS:
        return _by_kernel(KERNEL, pixels, width, height, interpolation, window)
    return _by_pillow(pixels, width, height, interpolation, window)


def _by_kernel(
    kernel: ctypes.CDLL, pixels: Pixels, width: int, height: int, interpolation: str, window: Window
) -> Pixels:
    source = np.ascontiguousarray(pixels)
    out = np.empty((window.height, window.width, 3), dtype=np.uint8)
    # ctypes lets go of the interpreter's lock meanwhile.
    if not kernel.resample(
        ctypes.c_void_p(source.ctypes.data),
        source.shape[1],
        source.shape[0],
        width,
        height,
        FILTERS[interpolation],
        *window,
        ctypes.c_void_p(out.ctypes.data),
    ):
        raise MemoryError
    return out


def _by_pillow(pixels: Pixels, width: int, height: int, interpolation: str, window: Window) -> Pixels:
    return window.of(np.asarray(Image.fromarray(pixels).resize((width, height), RESAMPLING[interpolation])))


def _load(path: Path) -> ctypes.CDLL | None:
    """The kernel, if it is there and agrees with Pillow on a wide, a tall and an enlarged image with each filter."""
    try:
        kernel = ctypes.CDLL(str(path))
    except OSError:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    window = Window(3, 5, 24, 24)
    for width, height in ((60, 45), (120, 32), (160, 140)):
        for name in FILTERS:
            ours = _by_kernel(kernel, noise, width, height, name, window)
            if not np.array_equal(ours, _by_pillow(noise, width, height, name, window)):
                return None
    return kernel


KERNEL = _load(LIBRARY)
