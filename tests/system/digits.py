"""Many different digits: shipped samples, moved and turned so that no two are alike."""

import random
from io import BytesIO
from pathlib import Path

from PIL import Image


def different_images(samples: list[Path], count: int) -> list[bytes]:
    """`count` different encoded images, PNG and JPEG in turn."""
    chance = random.Random(0)
    images = []
    for position in range(count):
        digit = Image.open(samples[position % len(samples)]).convert("L")
        turned = digit.rotate(chance.uniform(-20, 20), translate=(chance.randint(-4, 4), chance.randint(-4, 4)))
        turned.putpixel((position % 32, position // 32), chance.randrange(256))
        buffer = BytesIO()
        turned.save(buffer, format=("PNG", "JPEG")[position % 2])
        images.append(buffer.getvalue())
    assert len(set(images)) == count
    return images
