"""A version on the side: it is shown images that another version has answered, and the answers are compared.

Nobody waits for it. It begins when the caller's answer is there, has the lowest priority, one image of it waits at
most, and none is shown while images of callers queue up.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from service.errors import DeadlineExceeded, Draining, Overloaded, ServiceError
from service.metrics import Metrics
from service.repository import ServedModel
from service.tickets import Logits, Stages, Ticket

# Under load it is shed, not queued, so this is only for a device that hangs.
PATIENCE_SECONDS = 10.0
SHED = (Overloaded, Draining, DeadlineExceeded)
# Admits encoded images for a model with a deadline, at the lowest priority.
Admit = Callable[[Sequence[bytes], ServedModel, float], Sequence[Ticket]]


class Shadow:
    """Used on the event loop only."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._comparing: set[asyncio.Task[None]] = set()

    def show(
        self,
        encoded: bytes,
        answered: Ticket,
        logits: Logits,
        models: tuple[ServedModel, ServedModel],
        admit: Admit,
    ) -> None:
        """Let the second model classify what the first one answered with `logits` `[classes]`, or shed it."""
        model, shadow = models
        if model.batcher.waiting >= model.costs.lanes or shadow.batcher.waiting:
            self._count(shadow, "shed")
            return
        try:
            (ticket,) = admit([encoded], shadow, time.monotonic() + PATIENCE_SECONDS)
        except ServiceError:
            self._count(shadow, "shed")
            return
        task = asyncio.create_task(self._compare(ticket, answered, logits, models))
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def _compare(
        self, ticket: Ticket, answered: Ticket, logits: Logits, models: tuple[ServedModel, ServedModel]
    ) -> None:
        model, shadow = models
        with shadow.held():
            try:
                other = await ticket.logits()
            except SHED:
                self._count(shadow, "shed")
                return
            except ServiceError:
                self._count(shadow, "failed")
                return
        same = model.card.labels[int(logits.argmax())] == shadow.card.labels[int(other.argmax())]
        self._count(shadow, "agreed" if same else "disagreed")
        for role, served, stages in (("primary", model, answered.stages), ("shadow", shadow, ticket.stages)):
            self._metrics.shadow_took(served.name, served.version, role, _seconds(stages))

    def _count(self, shadow: ServedModel, result: str) -> None:
        self._metrics.shadowed(shadow.name, shadow.version, result)


def _seconds(stages: Stages) -> float:
    return stages.decode + stages.queue + stages.inference
