"""What the server runs for a worker: images that the worker has decoded, in the queue that all others are in."""

import asyncio
from collections.abc import Callable
from functools import partial

from service.errors import ServiceError
from service.handover import Asked, Ran
from service.repository import ServedModel
from service.shared_images import SharedImages
from service.tickets import Logits, Ticket

Tell = Callable[[Ran], None]


class Errands:
    """The images of one worker that are on their way. Used on the event loop only."""

    def __init__(self, images: SharedImages) -> None:
        self._images = images
        self._waiting: dict[int, Ticket] = {}
        self._untold: dict[int, tuple[float, float, float] | None] = {}

    def run(self, asked: Asked, model: ServedModel, tell: Tell) -> None:
        """Queue images, and `tell` what became of them. Those that cannot be queued, fail, or wait longer than their
        deadline are for the server to answer."""
        queued = {}
        for place, deadline in asked.deadlines.items():
            try:
                (ticket,) = model.batcher.reserve(deadline)
            except ServiceError:
                self._over(place, None, tell)
                continue
            self._waiting[place] = ticket
            ticket.future.add_done_callback(partial(_cancel, ticket.expire_later()))
            ticket.future.add_done_callback(partial(self._done, place, ticket, model, tell))
            queued[ticket] = self._images.pixels(place, model.card)
        model.batcher.enqueue_all(queued)

    def drop(self, place: int) -> None:
        """Nobody waits for this one any more."""
        if (ticket := self._waiting.get(place)) is not None:
            ticket.abandon()

    def abandon(self) -> None:
        """Nobody waits for any of them any more, and nobody is told."""
        waiting, self._waiting, self._untold = self._waiting, {}, {}
        for ticket in waiting.values():
            ticket.abandon()

    def _done(self, place: int, ticket: Ticket, model: ServedModel, tell: Tell, future: asyncio.Future[Logits]) -> None:
        failed = future.exception()
        if self._waiting.get(place) is not ticket:
            return
        del self._waiting[place]
        if failed:
            self._over(place, None, tell)
            return
        self._images.logits(place, model.card)[:] = future.result()
        stages = ticket.stages
        self._over(place, (stages.queue, stages.inference, stages.finished_at), tell)

    def _over(self, place: int, stages: tuple[float, float, float] | None, tell: Tell) -> None:
        if not self._untold:
            asyncio.get_running_loop().call_soon(self._tell_all, tell)
        self._untold[place] = stages

    def _tell_all(self, tell: Tell) -> None:
        if self._untold:
            ran, self._untold = Ran(self._untold), {}
            tell(ran)


def _cancel(timer: asyncio.TimerHandle, _: asyncio.Future[Logits]) -> None:
    timer.cancel()
