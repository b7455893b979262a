"""A model without weights that tells which colour an image has most of; its device can be held, broken or killed."""

import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.artifact import CARD_PROPERTY, InputSpec, ModelCard, Preprocessing
from service.costs import Arrangement, Cost, Costs
from service.runtime import Array, OutOfDeviceMemory, Outputs, TensorSpec

SIZE = 8
LABELS = ("red", "green", "blue")


def colour_card(name: str = "colours") -> ModelCard:
    """The card of the colour model: images are stretched to 8×8 and nothing is normalised."""
    return ModelCard(
        name=name,
        architecture="mean",
        input=InputSpec(height=SIZE, width=SIZE),
        preprocessing=Preprocessing(
            resize=SIZE, crop=SIZE, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1), exif="transpose"
        ),
        labels=LABELS,
        precision="fp32",
    )


class ColourBackend:
    """Logits are the mean of each channel, in sixteenths."""

    def __init__(self, card: ModelCard | None = None) -> None:
        self.device = "cpu"
        self.lanes: Mapping[Arrangement, int] = {"together": 1}
        self.metadata: Mapping[str, str] = {CARD_PROPERTY: (card or colour_card()).model_dump_json()}
        self.input = TensorSpec("images", "tensor(uint8)", (None, SIZE, SIZE, 3))
        self.output = TensorSpec("logits", "tensor(float)", (None, len(LABELS)))
        self.batches: list[int] = []
        self.error: BaseException | None = None
        self.free = threading.Event()
        self.free.set()
        self.busy = threading.Event()
        self.closed = False
        self.seconds = 0.0
        self.most: int | None = None
        self.poison = False

    def open(self, path: Path) -> "ColourBackend":
        """What the service calls to load a model file."""
        return self

    def hold(self) -> None:
        """Keep the next batch on the device until `free` is set; `busy` tells when it is there."""
        self.busy.clear()
        self.free.clear()

    def step(self) -> None:
        """Let the batch that is held go, and keep the one after it."""
        self.busy.wait()
        self.busy.clear()
        held, self.free = self.free, threading.Event()
        held.set()

    def run(self, images: Array, *, features: bool = False, arrangement: Arrangement = "together") -> Outputs:
        """Logits of uint8 `[n, 8, 8, 3]`, once the device is free."""
        free = self.free
        self.busy.set()
        free.wait()
        time.sleep(self.seconds)
        self.batches.append(len(images))
        if self.error is not None:
            raise self.error
        if self.most is not None and len(images) > self.most:
            raise OutOfDeviceMemory("there is room for fewer")
        logits = logits_of(images) * np.float32(np.nan if self.poison else 1)
        return Outputs(logits, features_of(images) if features else None)

    def keep(self, arrangements: Collection[Arrangement]) -> None:
        """There is nothing to free."""

    def close(self) -> None:
        """Remember that the service closed it."""
        self.closed = True


def features_of(images: Array) -> NDArray[np.float32]:
    """The map that the logits are the mean of: each channel in sixteenths, `[n, 3, 8, 8]`."""
    return (images.transpose(0, 3, 1, 2) / 16).astype(np.float32)


def logits_of(images: Array) -> NDArray[np.float32]:
    """What the backend answers."""
    means: NDArray[np.float32] = (images.astype(np.float32).mean(axis=(1, 2)) / 16).astype(np.float32)
    return means


def costs_up_to(max_batch: int, lanes: int = 1, seconds: float = 1e-4) -> Costs:
    """The table of a model for which every batch size pays, as a batch of any size takes as long."""
    table = tuple(Cost(size, seconds, lanes * size / seconds, True) for size in range(1, max_batch + 1))
    arrangement: Arrangement = "together" if lanes == 1 else "spread"
    return Costs(arrangement, seconds, arrangement, lanes, table)
