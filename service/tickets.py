"""A place in a model's queue, and the times that an image spends on its way."""

import asyncio
import time
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from service.errors import ClientClosed, DeadlineExceeded

Logits = NDArray[np.float32]
Features = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class Priority(IntEnum):
    """Lowest first. `SHADOW` is the service's own: work that nobody waits for."""

    SHADOW = 0
    LOW = 1
    NORMAL = 2
    HIGH = 3


@dataclass(slots=True)
class Stages:
    """Seconds that one image spent in each stage, and when (`time.monotonic()`) it left the device."""

    decode: float = 0.0
    queue: float = 0.0
    inference: float = 0.0
    finished_at: float = 0.0


def slowest(stages: list[Stages]) -> Stages | None:
    """The stages of a batch as its one request saw them: each as long as the slowest image's."""
    if not stages:
        return None
    return Stages(
        decode=max(each.decode for each in stages),
        queue=max(each.queue for each in stages),
        inference=max(each.inference for each in stages),
        finished_at=max(each.finished_at for each in stages),
    )


@dataclass(slots=True)
class Explained:
    """What an explanation needs beside the logits: pixels `[H, W, 3]` and features `[channels, h, w]` of the image.

    Each is there once its stage is done, which is before the ticket's future is resolved.
    """

    pixels: Pixels | None = None
    features: Features | None = None


@dataclass(slots=True, eq=False)
class Ticket:
    """A place in the queue, held from admission until the image's future is resolved.

    `explained` is set for an image whose answer is to be explained; it then collects what that takes.

    `deadline` is in the seconds of `time.monotonic()`. The future belongs to the event loop; other threads only read
    whether it is done.
    """

    deadline: float
    future: asyncio.Future[Logits]
    stages: Stages = field(default_factory=Stages)
    priority: Priority = Priority.NORMAL
    explained: Explained | None = None
    queued_at: float = 0.0

    @property
    def abandoned(self) -> bool:
        """Nobody waits for this image any more."""
        return self.future.done()

    def abandon(self) -> None:
        """The client is gone. To be called on the event loop; the image is dropped wherever it is."""
        if not self.future.done():
            self.future.set_exception(ClientClosed())

    async def logits(self) -> Logits:
        """Wait for the float32 logits `[classes]`, until the deadline.

        Raises:
            DeadlineExceeded: the deadline passed first; the image is dropped wherever it is.
            ServiceError: what went wrong with this image or its batch.
        """
        timer = self.expire_later()
        try:
            return await self.future
        finally:
            timer.cancel()

    def expire_later(self) -> asyncio.TimerHandle:
        """Drop the image, wherever it is, when the deadline passes. To be called on the event loop."""
        return self.future.get_loop().call_later(self.deadline - time.monotonic(), self._expire)

    def _expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(DeadlineExceeded())
