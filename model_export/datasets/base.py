"""What training needs of a data set: batches of normalised images, and how the service must prepare images alike."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from service.artifact import Preprocessing


class Batch(NamedTuple):
    """Normalised float32 images `[n, 3, H, W]` and their int64 class indices `[n]`."""

    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Facts:
    """What a data set says of itself. `epochs` is how long one trains on it where nothing is said."""

    name: str
    held_out_name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    epochs: int
    training_images: int
    held_out_images: int


class DataSet(ABC):
    """Images to train on and images that are held out. Every random choice is torch's global generator's."""

    facts: Facts

    @abstractmethod
    def training(self, size: int) -> Iterator[Batch]:
        """One epoch in random order, augmented, in batches of `size`, as `shuffled` splits them."""

    @abstractmethod
    def held_out(self, size: int) -> Iterator[Batch]:
        """The held-out images in order, prepared as the service prepares them."""

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1], `[n, 3, H, W]` or grey `[n, 1, H, W]` -> normalised `[n, 3, H, W]`, as in the graph."""
        mean = torch.tensor(self.facts.preprocessing.mean).reshape(1, 3, 1, 1)
        std = torch.tensor(self.facts.preprocessing.std).reshape(1, 3, 1, 1)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def shuffled(count: int, size: int) -> Iterator[Tensor]:
    """Indices in random order, in batches.

    A last batch of one image is left out of the epoch: batch normalisation of a 1×1 map needs two.
    """
    for chosen in torch.split(torch.randperm(count), size):
        if len(chosen) > 1 or size == 1:
            yield chosen


class PixelData(DataSet):
    """A data set that is in memory as a whole: uint8 `[n, 3, H, W]` and int64 class indices `[n]`."""

    PADDING = 4

    def __init__(self, facts: Facts, training: Batch, held_out: Batch, *, flip: bool) -> None:
        self.facts = facts
        self._training = training
        self._held_out = held_out
        self._flip = flip

    def training(self, size: int) -> Iterator[Batch]:
        """Augmented as section 4.2 says: 4 pixels padded on each side, a random crop, half of the images flipped.

        The padding is the mean colour, as the paper's is, which subtracts the mean first.
        """
        for chosen in shuffled(len(self._training.targets), size):
            images = self.normalise(self._training.images[chosen].float() / 255)
            yield Batch(pad_crop_flip(images, self.PADDING, flip=self._flip), self._training.targets[chosen])

    def held_out(self, size: int) -> Iterator[Batch]:
        """In the order of the archive."""
        for images, targets in zip(*(torch.split(each, size) for each in self._held_out), strict=True):
            yield Batch(self.normalise(images.float() / 255), targets)


def pad_crop_flip(images: Tensor, padding: int, *, flip: bool) -> Tensor:
    """Shift each image of `[n, C, H, W]` by up to `padding` pixels, filled with zeros, and mirror half of them."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(2 * padding + 1, (2, count))
    cropped = windows[torch.arange(count), :, top, left]
    if flip:
        mirrored = torch.rand(count, 1, 1, 1) < 0.5
        cropped = torch.where(mirrored, cropped.flip(3), cropped)
    return cropped.contiguous(memory_format=torch.channels_last)
