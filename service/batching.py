"""Who runs next: one bounded queue for each model, and a device thread for each of its lanes.

Batches form by backpressure. When a lane is free it takes what is waiting, up to the size that pays; while it works,
the next batch gathers. Nothing ever waits for a timer. Work that nobody waits for any more (cancelled, past its
deadline) is dropped before it costs device time, and every future is resolved exactly once on every path.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.costs import Arrangement, Costs
from service.cpus import step_back
from service.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    ModelUnavailable,
    Overloaded,
    ServiceError,
)
from service.metrics import Metrics
from service.priorities import Waiting
from service.runtime import DeviceLost, OutOfDeviceMemory, Outputs
from service.statistics import Statistics
from service.tickets import Explained, Logits, Pixels, Priority, Ticket

log = logging.getLogger(__name__)

Outcome = Logits | Exception
TOO_LATE = (
    "The answer would come after the deadline; try again after the time in Retry-After, or with a longer deadline."
)
# An estimate that is right on average is too short for half of the requests, and those would be computed for nothing.
HEADROOM = 1.5
# A run is given so many times what the slowest batch took at warm-up before its device counts as hung.
HUNG_AFTER = 20
# What a thread that wakes up waits for a core anyway. Shorter runs lose more by giving way than the event loop gains.
LONG_RUN_SECONDS = 3e-3
# Half a millisecond; for larger batches the event loop should not wait.
MOST_BYTES_UNDER_LOCK = 2**22


class Run(Protocol):
    """Maps uint8 pixels `[n, H, W, 3]` to float32 logits `[n, classes]`, and to features where they are asked for."""

    def __call__(self, images: Pixels, *, features: bool = False, arrangement: Arrangement = "together") -> Outputs: ...


@dataclass(slots=True)
class _Running:
    """A batch on the device: whose images, in which arrangement, among so many lanes, since and until when.

    `watched` is the time for which the watchdog has seen it there: a process that was stopped has not hung.
    """

    tickets: list[Ticket]
    arrangement: Arrangement
    lanes: int
    since: float
    until: float
    watched: float = 0.0


class Batcher:
    """The queue of one model and the threads that own its device, one for each lane."""

    def __init__(  # noqa: PLR0913  each is another thing
        self,
        name: str,
        run: Run,
        *,
        costs: Costs,
        max_queue: int,
        metrics: Metrics,
        fixed_sizes: bool = False,
        patience: float = 10.0,
    ) -> None:
        """Only the device threads call `run`. With `fixed_sizes` a batch is padded to the next size that pays.

        Args:
            name: for log lines and threads.
            run: as many threads call it at once as `costs` has lanes.
            costs: what the batches of this model take on this device.
            max_queue: most images admitted and not yet on the device.
            metrics: counts batches and stages.
            fixed_sizes: the device prepares for each batch size (CUDA chooses algorithms by shape).
            patience: seconds that any run may take, or HUNG_AFTER times the slowest batch if that is longer.
        """
        self._run = run
        self._costs = costs
        self._max_queue = max_queue
        self._metrics = metrics
        self._fixed_sizes = fixed_sizes
        self._patience = max(patience, HUNG_AFTER * max(each.seconds for each in costs.table))
        self._most = max(costs.sizes)
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._running: dict[int, _Running] = {}
        self._seconds_per_image = costs.seconds_per_image
        self._finished_at = 0.0
        self._busy = False
        self._stopping = False
        self._dead = False
        self.statistics = Statistics()
        self._loop: asyncio.AbstractEventLoop
        self._on_death: Callable[[str], None]
        self._name = name
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"device {name} lane {lane}", daemon=True)
            for lane in range(costs.lanes)
        ]

    def start(self, loop: asyncio.AbstractEventLoop, on_death: Callable[[str], None]) -> None:
        """Start the device threads. `on_death` is called on the loop if one of them ever dies."""
        self._loop = loop
        self._on_death = on_death
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images admitted and not yet on the device: being decoded or queued."""
        return self._waiting.admitted

    @property
    def running(self) -> int:
        """Images on the device now."""
        return sum(len(each.tickets) for each in list(self._running.values()))

    def reserve(
        self,
        deadline: float,
        images: int = 1,
        *,
        priority: Priority = Priority.NORMAL,
        explained: bool = False,
    ) -> list[Ticket]:
        """Places for `images`, all or none, on the event loop; each ticket must then be enqueued or rejected.

        Where the queue is full, waiting images of a lower priority lose their places to these.

        Args:
            deadline: in seconds of `time.monotonic()`.
            images: how many places.
            priority: of all of them.
            explained: keep what an explanation needs; only for a model that has features.

        Raises:
            Overloaded: the queue has no room for all of them, or cannot answer them before the deadline.
            Draining, ModelUnavailable: nothing is taken any more.
        """
        with self._changed:
            self._refuse_when_closed()
            if self._idle:
                self._busy = False  # what was admitted behind the last batch never ran
            displaced = self._make_room(deadline, images, priority)
            tickets = [self._ticket(deadline, priority, explained=explained) for _ in range(images)]
            for ticket in tickets:
                self._waiting.admit(ticket)
            for ticket in displaced:
                self.reject(ticket, Overloaded(retry_after=self._retry_after(ticket.priority)))
        return tickets

    @property
    def has_room(self) -> bool:
        """Whether one more image would be admitted, without another losing its place."""
        return self._waiting.admitted < self._max_queue

    def refuse_when_full(self, priority: Priority = Priority.NORMAL) -> None:
        """Raise what `reserve` would for one image, before its body is even read."""
        with self._changed:
            self._refuse_when_closed()
            if self._waiting.admitted >= self._max_queue and not self._waiting.displaceable(priority, 1):
                raise Overloaded(retry_after=self._retry_after(priority))

    def enqueue(self, ticket: Ticket, pixels: Pixels) -> None:
        """Queue a reserved image for the device. Any thread may call it."""
        if ticket.explained:
            ticket.explained.pixels = pixels
        self.enqueue_all({ticket: pixels})

    def enqueue_all(self, images: Mapping[Ticket, Pixels]) -> None:
        """Queue reserved images together, so that no batch is formed of the first of them alone."""
        now = time.monotonic()
        with self._changed:
            held = {ticket: pixels for ticket, pixels in images.items() if self._waiting.holds(ticket)}
            if not self._dead:
                for ticket, pixels in held.items():
                    ticket.queued_at = now
                    self._waiting.queue(ticket, pixels)
                self._changed.notify(len(held))
                return
        for ticket in held:
            self.reject(ticket, ModelUnavailable())

    def reject(self, ticket: Ticket, error: Exception) -> None:
        """Give a reserved place back and its caller the error. Any thread may call it."""
        self._leave(ticket)
        self._resolve([(ticket, error)])

    def _ticket(self, deadline: float, priority: Priority, *, explained: bool) -> Ticket:
        future = self._loop.create_future()
        ticket = Ticket(deadline, future, priority=priority, explained=Explained() if explained else None)
        future.add_done_callback(lambda _: self._leave(ticket))
        return ticket

    def _make_room(self, deadline: float, images: int, priority: Priority) -> list[Ticket]:
        """Whose places are taken; Overloaded if there is no room even so, or the answer would come too late."""
        excess = self._waiting.admitted + images - self._max_queue
        displaced = self._waiting.displaceable(priority, excess) if excess > 0 else []
        if len(displaced) < excess:
            raise Overloaded(retry_after=self._retry_after(priority))
        # Only runs correct the pace: on an idle device one that is too slow would refuse the same caller for ever.
        pace = min(self._seconds_per_image, self._costs.seconds_per_image) if self._idle else self._seconds_per_image
        own = (images - 1) * pace + self._costs.lone_seconds
        if time.monotonic() + HEADROOM * (self._wait(priority, images) + own) > deadline:
            raise Overloaded(TOO_LATE, retry_after=self._retry_after(priority))
        return displaced

    def _wait(self, priority: Priority, images: int = 1) -> float:
        """Seconds until what goes before so many images of a priority has left the device."""
        soonest = min((each.until for each in self._running.values()), default=0.0)
        busy = max(0.0, soonest - time.monotonic()) if len(self._running) == len(self._threads) else 0.0
        return busy + self._waiting.ahead(priority, images) * self._seconds_per_image

    def _retry_after(self, priority: Priority) -> int:
        return max(1, math.ceil(self._wait(priority)))

    def _leave(self, ticket: Ticket) -> None:
        """Free the place of an image that will not run, at once: the callers who still wait need it."""
        with self._changed:
            if self._waiting.leave(ticket):
                self._changed.notify_all()

    async def stop(self, grace: float) -> None:
        """Take no new work, answer what is waiting, end the threads; after `grace` seconds what is left gets 503."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            give_up = time.monotonic() + (0.0 if self._dead else grace)
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join, max(0.0, give_up - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self._close(Draining())

    def watch(self, elapsed: float) -> None:
        """Look after the device, on the event loop, `elapsed` seconds after the last look.

        A run that never comes back is a run whose callers would never hear: they get 503, and the process is told.
        """
        with self._changed:
            running = list(self._running.values())
            for each in running:
                each.watched += elapsed
            if self._dead or not any(each.watched > self._patience for each in running):
                return
        log.critical("a run of %s has not come back for %.1f s", self._name, self._patience)
        self._metrics.device_failed("hung")
        self._give_up(f"the device has not answered {self._name} for {self._patience:.1f} s")
        self._resolve([(ticket, ModelUnavailable()) for each in running for ticket in each.tickets])

    def count(self, elsewhere: Statistics) -> None:
        """Count what another process did with this model."""
        with self._changed:
            self.statistics.sum(elsewhere)

    def _refuse_when_closed(self) -> None:
        if self._dead:
            raise ModelUnavailable
        if self._stopping:
            raise Draining

    def _work(self, lane: int) -> None:
        try:
            on_a_core = self._costs.crowd == "spread" and not self._fixed_sizes
            if on_a_core and self._costs.lone_seconds > LONG_RUN_SECONDS:
                step_back()  # this thread computes, and would keep its core from the event loop for many milliseconds
            while batch := self._next_batch(lane):
                self._run_batch(lane, batch)
        except BaseException as error:  # a device thread that dies in silence leaves callers hanging for ever
            self._die(lane, error)

    def _next_batch(self, lane: int) -> dict[Ticket, Pixels]:
        """Wait for work and take up to a batch of it; empty when the batcher has stopped and nothing is left."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting.decoded or self._ended)
                if not self._waiting.decoded:
                    return {}
                batch, expired = self._take()
                if batch:
                    self._running[lane] = self._starting(list(batch))
            self._resolve([(ticket, DeadlineExceeded()) for ticket in expired])
            if batch:
                return batch

    @property
    def _idle(self) -> bool:
        return not self._waiting.admitted and not self._running

    @property
    def _ended(self) -> bool:
        return self._dead or (self._stopping and not self._waiting.admitted)

    def _starting(self, tickets: list[Ticket]) -> _Running:
        """A lone image on an idle device may use every core; the others run side by side."""
        images = len(tickets)
        lone = images == 1 and not self._running and not self._waiting.decoded
        arrangement = self._costs.lone if lone else self._costs.crowd
        lanes = 1 if arrangement == "together" else len(self._threads)
        now = time.monotonic()
        return _Running(tickets, arrangement, lanes, now, now + images * lanes * self._seconds_per_image)

    def _take(self) -> tuple[dict[Ticket, Pixels], list[Ticket]]:
        batch: dict[Ticket, Pixels] = {}
        expired: list[Ticket] = []
        now = time.monotonic()
        size = self._batch_size(now)
        while self._waiting.decoded and len(batch) < size:
            ticket, pixels = self._waiting.take()
            if ticket.abandoned:
                continue
            if ticket.deadline <= now:
                expired.append(ticket)
                continue
            ticket.stages.queue = now - ticket.queued_at
            batch[ticket] = pixels
        return batch, expired

    def _batch_size(self, now: float) -> int:
        """The size with the best rate that keeps the earliest deadline, or a lane's share of all that is there."""
        earliest = min((ticket.deadline for ticket in self._waiting.tickets() if ticket.deadline > now), default=now)
        most = min(self._costs.largest_within(earliest - now), self._most)
        return min(most, math.ceil((self._waiting.decoded + self.running) / len(self._threads)))

    def _run_batch(self, lane: int, batch: dict[Ticket, Pixels]) -> None:
        tickets = list(batch)
        try:
            outcomes = self._outcomes_of(batch, self._running[lane].arrangement)
        except BaseException:
            self._resolve([(ticket, ModelUnavailable()) for ticket in tickets])
            raise
        self._record(tickets, lane, failed=isinstance(outcomes[0], Exception))
        self._resolve(list(zip(tickets, outcomes, strict=True)))

    def _outcomes_of(self, batch: dict[Ticket, Pixels], arrangement: Arrangement) -> list[Outcome]:
        """A run's logits, a row for each ticket; in halves where the device has no memory for the whole."""
        try:
            return list(self._outputs_of(batch, arrangement))
        except OutOfDeviceMemory as error:
            self._metrics.device_failed("out_of_memory")
            log.error("no memory for a batch of %d of %s: %s", len(batch), self._name, error)
            half = len(batch) // 2
            if not half:
                return [ModelUnavailable()]
            self._most = min(self._most, half)  # larger ones would only fail again
            images = list(batch.items())
            return [
                outcome
                for part in (images[:half], images[half:])
                for outcome in self._outcomes_of(dict(part), arrangement)
            ]
        except DeviceLost:
            raise
        except Exception as error:  # the backend may raise anything; its batch gets an answer, the next a fresh start
            self._metrics.device_failed("run_failed")
            return [InternalError.because(error) for _ in batch]

    def _outputs_of(self, batch: dict[Ticket, Pixels], arrangement: Arrangement) -> Logits:
        """One run: the logits, a row for each ticket, and the features for the tickets that are to be explained."""
        wanted = any(ticket.explained for ticket in batch)
        images = _stacked(self._padded(list(batch.values())))  # (n, H, W, 3) uint8
        outputs = self._run(images, features=wanted, arrangement=arrangement)
        logits = _one_row_each(outputs.logits, len(images))[: len(batch)]
        if outputs.features is not None:
            for ticket, features in zip(batch, outputs.features, strict=False):  # no ticket waits for the padding
                if ticket.explained:
                    ticket.explained.features = features.copy()  # a view would keep the whole batch's in memory
        return logits

    def _padded(self, images: list[Pixels]) -> list[Pixels]:
        missing = self._costs.covering(len(images)) - len(images) if self._fixed_sizes else 0
        return images + [images[0]] * missing

    def _record(self, tickets: list[Ticket], lane: int, *, failed: bool) -> None:
        finished = time.monotonic()
        with self._changed:
            running = self._running.pop(lane)
            seconds = finished - running.since
            self.statistics.ran([ticket.stages.queue for ticket in tickets], seconds, failed=failed)
            # Under load the pace at which batches leave is measured: it has decoding and other models in it.
            pace = finished - self._finished_at if self._busy else seconds / running.lanes
            self._seconds_per_image = 0.9 * self._seconds_per_image + 0.1 * pace / len(tickets)
            self._finished_at = finished
            self._busy = self._waiting.admitted > 0
        for ticket in tickets:
            ticket.stages.inference = seconds
            ticket.stages.finished_at = finished
            self._metrics.stage("queue", ticket.stages.queue)
        self._metrics.stage("inference", seconds)
        self._metrics.batch_size.observe(len(tickets))

    def _resolve(self, outcomes: list[tuple[Ticket, Outcome]]) -> None:
        """Hand a whole batch of outcomes to the event loop in one hop."""
        if outcomes:
            self._loop.call_soon_threadsafe(_settle, outcomes)

    def _close(self, error: ServiceError) -> None:
        """Nothing will run any more: give what is queued the error, and refuse what is still being decoded."""
        with self._changed:
            self._dead = True
            left = list(self._waiting.tickets())
            self._changed.notify_all()
        for ticket in left:
            self.reject(ticket, error)

    def _die(self, lane: int, error: BaseException) -> None:
        log.critical("a device thread of %s died", self._name, exc_info=error)
        self._metrics.device_failed("lost")
        self._running.pop(lane, None)
        lost = isinstance(error, DeviceLost)
        self._loop.call_soon_threadsafe(
            self._give_up, f"the device of {self._name} is lost" if lost else f"the device thread of {self._name} died"
        )

    def _give_up(self, reason: str) -> None:
        self._close(ModelUnavailable())
        self._on_death(reason)


def _stacked(images: list[Pixels]) -> Pixels:
    """The images as one array.

    numpy lets go of the interpreter's lock to copy more than 500 values, and has to wait for it afterwards until the
    event loop rests, or for 5 ms, with a core idle. Views copy under the lock, which takes less for small batches.
    """
    size = images[0].nbytes
    if len(images) * size > MOST_BYTES_UNDER_LOCK:
        return np.stack(images)
    batch = np.empty((len(images), *images[0].shape), images[0].dtype)
    places = batch.data.cast("B")
    for place, image in enumerate(images):
        places[place * size : (place + 1) * size] = np.ascontiguousarray(image).data.cast("B")
    return batch


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
