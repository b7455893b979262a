"""Who runs next: one bounded queue and one device thread for each model.

Batches form by backpressure. When the device is free it takes what is waiting, up to the batch limit; while it works,
the next batch gathers. Nothing ever waits for a timer. Work that nobody waits for any more (cancelled, past its
deadline) is dropped before it costs device time, and every future is resolved exactly once on every path.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from service.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    ModelUnavailable,
    Overloaded,
    ServiceError,
)
from service.metrics import Metrics
from service.runtime import Outputs
from service.statistics import Statistics
from service.tickets import Explained, Logits, Pixels, Ticket

log = logging.getLogger(__name__)

Outcome = Logits | Exception


class Run(Protocol):
    """Maps uint8 pixels `[n, H, W, 3]` to float32 logits `[n, classes]`, and to features where they are asked for."""

    def __call__(self, images: Pixels, *, features: bool = False) -> Outputs: ...


class Batcher:
    """The queue of one model and the thread that owns its device."""

    def __init__(
        self,
        name: str,
        run: Run,
        *,
        max_batch: int,
        max_queue: int,
        metrics: Metrics,
    ) -> None:
        """Only the device thread calls `run`."""
        self._run = run
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queue: dict[Ticket, Pixels] = {}
        self.statistics = Statistics()
        self._waiting = 0
        self._running = 0
        self._seconds_per_image = 0.0
        self._stopping = False
        self._dead = False
        self._loop: asyncio.AbstractEventLoop
        self._on_death: Callable[[str], None]
        self._name = name
        self._thread = threading.Thread(target=self._work, name=f"device {name}", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop, on_death: Callable[[str], None]) -> None:
        """Start the device thread. `on_death` is called on the loop if that thread ever dies."""
        self._loop = loop
        self._on_death = on_death
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images admitted and not yet on the device: being decoded or queued."""
        return self._waiting

    @property
    def running(self) -> int:
        """Images on the device now."""
        return self._running

    def reserve(self, deadline: float, images: int = 1, *, explained: bool = False) -> list[Ticket]:
        """Places for `images`, all or none, on the event loop; each ticket must then be enqueued or rejected.

        Args:
            deadline: in seconds of `time.monotonic()`.
            images: how many places.
            explained: keep what an explanation needs; only for a model that has features.

        Raises:
            Overloaded: the queue has no room for all of them, or is longer than the deadline allows.
            Draining, ModelUnavailable: nothing is taken any more.
        """
        with self._changed:
            self._refuse_when_closed()
            wait = self._waiting * self._seconds_per_image
            if self._waiting + images > self._max_queue or wait > deadline - time.monotonic():
                raise Overloaded(retry_after=max(1, math.ceil(wait)))
            self._waiting += images
        return [self._ticket(deadline, Explained() if explained else None) for _ in range(images)]

    def refuse_when_full(self) -> None:
        """Raise what `reserve` would for one image, before its body is even read."""
        with self._changed:
            self._refuse_when_closed()
            if self._waiting >= self._max_queue:
                raise Overloaded(retry_after=max(1, math.ceil(self._waiting * self._seconds_per_image)))

    def enqueue(self, ticket: Ticket, pixels: Pixels) -> None:
        """Queue a reserved image for the device. Any thread may call it."""
        if ticket.explained:
            ticket.explained.pixels = pixels
        self.enqueue_all({ticket: pixels})

    def enqueue_all(self, images: Mapping[Ticket, Pixels]) -> None:
        """Queue reserved images together, so that no batch is formed of the first of them alone."""
        now = time.monotonic()
        with self._changed:
            for ticket, pixels in images.items():
                ticket.queued_at = now
                if not self._dead and ticket.waiting and not ticket.abandoned:
                    self._queue[ticket] = pixels
            self._changed.notify()
            refused = [ticket for ticket in images if self._dead and ticket.waiting]
        for ticket in refused:
            self.reject(ticket, ModelUnavailable())

    def reject(self, ticket: Ticket, error: Exception) -> None:
        """Give a reserved place back and its caller the error. Any thread may call it."""
        self._leave(ticket)
        self._resolve([(ticket, error)])

    def _ticket(self, deadline: float, explained: Explained | None) -> Ticket:
        ticket = Ticket(deadline, self._loop.create_future(), explained=explained)
        ticket.future.add_done_callback(lambda _: self._leave(ticket))
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        """Free the place of an image that will not run, at once: the callers who still wait need it."""
        with self._changed:
            self._queue.pop(ticket, None)
            if ticket.waiting:
                ticket.waiting = False
                self._waiting -= 1
                self._changed.notify()

    async def stop(self, grace: float) -> None:
        """Take no new work, answer what is waiting, end the thread; after `grace` seconds what is left gets 503."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, grace)
            if self._thread.is_alive():
                self._close(Draining())

    def _refuse_when_closed(self) -> None:
        if self._dead:
            raise ModelUnavailable
        if self._stopping:
            raise Draining

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                self._run_batch(batch)
        except BaseException as error:  # a device thread that dies in silence leaves callers hanging for ever
            self._die(error)

    def _next_batch(self) -> dict[Ticket, Pixels]:
        """Wait for work and take up to a batch of it; empty when the batcher has stopped and nothing is left."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or (self._stopping and not self._waiting))
                if not self._queue:
                    return {}
                batch, expired = self._take()
                self._running = len(batch)
            self._resolve([(ticket, DeadlineExceeded()) for ticket in expired])
            if batch:
                return batch

    def _take(self) -> tuple[dict[Ticket, Pixels], list[Ticket]]:
        batch: dict[Ticket, Pixels] = {}
        expired: list[Ticket] = []
        now = time.monotonic()
        while self._queue and len(batch) < self._max_batch:
            ticket = next(iter(self._queue))
            pixels = self._queue.pop(ticket)
            ticket.waiting = False
            self._waiting -= 1
            if ticket.abandoned:
                continue
            if ticket.deadline <= now:
                expired.append(ticket)
                continue
            ticket.stages.queue = now - ticket.queued_at
            batch[ticket] = pixels
        return batch, expired

    def _run_batch(self, batch: dict[Ticket, Pixels]) -> None:
        tickets = list(batch)
        started = time.monotonic()
        outcomes: list[Outcome]
        try:
            outcomes = list(self._outputs_of(batch))
        except Exception as error:  # the backend may raise anything; its batch gets an answer, the next a fresh start
            outcomes = [InternalError.because(error) for _ in tickets]
        except BaseException:
            self._resolve([(ticket, ModelUnavailable()) for ticket in tickets])
            raise
        self._running = 0
        self._record(tickets, started, time.monotonic(), failed=isinstance(outcomes[0], Exception))
        self._resolve(list(zip(tickets, outcomes, strict=True)))

    def _outputs_of(self, batch: dict[Ticket, Pixels]) -> Logits:
        """One run: the logits, a row for each ticket, and the features for the tickets that are to be explained."""
        wanted = any(ticket.explained for ticket in batch)
        outputs = self._run(np.stack(list(batch.values())), features=wanted)
        logits = _one_row_each(outputs.logits, len(batch))
        if outputs.features is not None:
            for ticket, features in zip(batch, outputs.features, strict=True):
                if ticket.explained:
                    ticket.explained.features = features.copy()  # a view would keep the whole batch's in memory
        return logits

    def _record(self, tickets: list[Ticket], started: float, finished: float, *, failed: bool) -> None:
        seconds = finished - started
        self.statistics.ran([ticket.stages.queue for ticket in tickets], seconds, failed=failed)
        for ticket in tickets:
            ticket.stages.inference = seconds
            ticket.stages.finished_at = finished
            self._metrics.stage("queue", ticket.stages.queue)
        self._metrics.stage("inference", seconds)
        self._metrics.batch_size.observe(len(tickets))
        latest = seconds / len(tickets)
        self._seconds_per_image = 0.9 * self._seconds_per_image + 0.1 * latest if self._seconds_per_image else latest

    def _resolve(self, outcomes: list[tuple[Ticket, Outcome]]) -> None:
        """Hand a whole batch of outcomes to the event loop in one hop."""
        if outcomes:
            self._loop.call_soon_threadsafe(_settle, outcomes)

    def _close(self, error: ServiceError) -> None:
        """Nothing will run any more: give what is queued the error, and refuse what is still being decoded."""
        with self._changed:
            self._dead = True
            left = list(self._queue)
        for ticket in left:
            self.reject(ticket, error)

    def _die(self, error: BaseException) -> None:
        log.critical("the device thread of %s died", self._name, exc_info=error)
        self._running = 0
        self._close(ModelUnavailable())
        self._loop.call_soon_threadsafe(self._on_death, f"the device thread of {self._name} died")


def _one_row_each(logits: Logits, images: int) -> Logits:
    if logits.ndim != 2 or len(logits) != images:
        raise ValueError(f"the model gave {logits.shape} for a batch of {images}")
    return logits


def _settle(outcomes: list[tuple[Ticket, Outcome]]) -> None:
    for ticket, outcome in outcomes:
        if ticket.future.done():
            continue
        if isinstance(outcome, Exception):
            ticket.future.set_exception(outcome)
        else:
            ticket.future.set_result(outcome)
