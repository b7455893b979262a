"""Images as they arrive after accidents and attacks: each format that is served, damaged in many ways."""

import random
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


def originals() -> list[bytes]:
    """Small images of each format and mode."""
    rng = np.random.default_rng(0)
    found = []
    for width, height in ((32, 32), (61, 17), (200, 150)):
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for form in FORMATS:
            found.append(_encode(noise, form))
        for mode in ("L", "CMYK"):
            found.append(_encode(noise.convert(mode), "JPEG"))
        found.append(_encode(noise, "JPEG", progressive=True))
        for mode in ("L", "LA", "RGBA", "P", "1", "I;16"):
            found.append(_encode(noise.convert("L" if mode == "I;16" else mode).convert(mode), "PNG"))
        frames = [noise.rotate(angle) for angle in (0, 90, 180)]
        for form in ("GIF", "WEBP", "PNG"):
            found.append(_encode(frames[0], form, save_all=True, append_images=frames[1:]))
    return found


def mutated(count: int, seed: int = 0) -> Iterator[bytes]:
    """So many damaged images."""
    rng = random.Random(seed)
    whole = originals()
    for _ in range(count):
        image = bytearray(rng.choice(whole))
        for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
            image = rng.choice(_MUTATIONS)(image, rng)
        yield bytes(image)


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def _flip_bits(image: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.randint(1, 16)):
        if image:
            image[rng.randrange(len(image))] ^= 1 << rng.randrange(8)
    return image


def _flip_header(image: bytearray, rng: random.Random) -> bytearray:
    if image:
        image[rng.randrange(min(64, len(image)))] = rng.randrange(256)
    return image


def _cut(image: bytearray, rng: random.Random) -> bytearray:
    return image[: rng.randint(0, len(image))]


def _repeat(image: bytearray, rng: random.Random) -> bytearray:
    start = rng.randint(0, len(image))
    return image[:start] + image[start : start + rng.randint(0, 200)] * rng.randint(1, 20) + image[start:]


def _remove(image: bytearray, rng: random.Random) -> bytearray:
    start = rng.randint(0, len(image))
    return image[:start] + image[start + rng.randint(0, 200) :]


def _insert(image: bytearray, rng: random.Random) -> bytearray:
    start = rng.randint(0, len(image))
    return image[:start] + rng.randbytes(rng.randint(0, 100)) + image[start:]


def _exaggerate(image: bytearray, rng: random.Random) -> bytearray:
    """Sizes and lengths are 16- or 32-bit numbers; make one of them as large as it can be."""
    start = rng.randint(0, len(image))
    return (
        image[:start]
        + rng.choice((b"\xff\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"))
        + image[start + 4 :]
    )


_MUTATIONS = (_flip_bits, _flip_bits, _flip_header, _cut, _repeat, _remove, _insert, _exaggerate)
