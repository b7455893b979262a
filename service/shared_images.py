"""Images in memory that a worker and its server share: no socket carries pixels as fast as networks on a GPU take them.

The worker writes pixels into a place and asks for them to be run; the server reads them there, and writes the logits
behind them. Only places that were used take memory.
"""

import mmap
import os
from io import FileIO

import numpy as np

from service.artifact import ModelCard
from service.tickets import Logits, Pixels

PLACES = 256
PLACE_BYTES = 2**21
BYTES = PLACES * PLACE_BYTES


def new_memory() -> FileIO:
    """Memory for images, as a file without a name; both sides open its descriptor."""
    memory = FileIO(os.memfd_create("images"), "r+")
    memory.truncate(BYTES)
    return memory


def fits(card: ModelCard) -> bool:
    """Whether an image of this model, and its logits, have room in a place."""
    return card.input.bytes + 4 * len(card.labels) <= PLACE_BYTES


class SharedImages:
    """One side's view of the memory."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor may be closed then."""
        self._memory = mmap.mmap(descriptor, BYTES)

    def pixels(self, place: int, card: ModelCard) -> Pixels:
        """The image in a place, uint8 `[height, width, 3]`, to be written or read."""
        pixels = np.frombuffer(self._memory, np.uint8, card.input.bytes, place * PLACE_BYTES)
        return pixels.reshape(card.input.shape)

    def logits(self, place: int, card: ModelCard) -> Logits:
        """Its logits, float32 `[classes]`."""
        classes = len(card.labels)
        return np.frombuffer(self._memory, np.float32, classes, (place + 1) * PLACE_BYTES - 4 * classes)
