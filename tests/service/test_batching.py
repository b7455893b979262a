"""The batcher's invariants: each was broken by some server that people use."""

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.batching import Batcher
from service.errors import (
    ClientClosed,
    DeadlineExceeded,
    Draining,
    InternalError,
    ModelUnavailable,
    Overloaded,
    ServiceError,
)
from service.metrics import Metrics
from service.runtime import DeviceLost, OutOfDeviceMemory, Outputs, failure_of
from service.tickets import Logits, Pixels, Priority, Ticket
from tests.backends import SIZE, ColourBackend, costs_up_to, logits_of
from tests.waiting import PATIENCE

pytestmark = pytest.mark.anyio
rng = np.random.default_rng(7)


def random_pixels() -> Pixels:
    return rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def far() -> float:
    return time.monotonic() + 3600


class Rig:
    """A running batcher over a colour backend."""

    def __init__(
        self, max_batch: int = 4, max_queue: int = 64, lanes: int = 1, seconds: float = 1e-4, patience: float = 10.0
    ) -> None:
        self.backend = ColourBackend()
        self.metrics = Metrics(CollectorRegistry())
        self.deaths: list[str] = []
        self.batcher = Batcher(
            "colours 1",
            self.backend.run,
            costs=costs_up_to(max_batch, lanes, seconds),
            max_queue=max_queue,
            metrics=self.metrics,
            patience=patience,
        )

    def failures(self, kind: str) -> float:
        count = self.metrics.registry.get_sample_value("device_failures_total", {"kind": kind})
        assert count is not None
        return count

    def submit(
        self, pixels: Pixels | None = None, deadline: float | None = None, priority: Priority = Priority.NORMAL
    ) -> Ticket:
        (ticket,) = self.batcher.reserve(far() if deadline is None else deadline, priority=priority)
        self.batcher.enqueue(ticket, random_pixels() if pixels is None else pixels)
        return ticket

    async def occupy(self) -> asyncio.Task[Logits]:
        """Put one image on a device that is then held; more can only queue."""
        self.backend.hold()
        task = asyncio.create_task(self.submit().logits())
        assert await asyncio.to_thread(self.backend.busy.wait, PATIENCE)
        return task


@asynccontextmanager
async def running(
    max_batch: int = 4, max_queue: int = 64, lanes: int = 1, seconds: float = 1e-4, patience: float = 10.0
) -> AsyncIterator[Rig]:
    """`seconds` is what the warm-up is said to have measured for a batch."""
    rig = Rig(max_batch, max_queue, lanes, seconds, patience)
    rig.batcher.start(asyncio.get_running_loop(), rig.deaths.append)
    try:
        yield rig
    finally:
        rig.backend.free.set()
        await rig.batcher.stop(grace=5)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  the condition is another thread's doing
            await asyncio.sleep(0.005)


async def error_of(awaitable: Awaitable[object]) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await awaitable
    return caught.value


async def test_a_every_caller_gets_the_result_of_its_own_image() -> None:
    async with running(max_batch=7, max_queue=500) as rig:
        images = [random_pixels() for _ in range(300)]
        answers = await asyncio.gather(*(rig.submit(pixels).logits() for pixels in images))
        np.testing.assert_array_equal(np.stack(answers), logits_of(np.stack(images)))
        assert max(rig.backend.batches) > 1, "nothing was batched, so nothing was proved"


@pytest.mark.parametrize("side", [300, 1000])  # 4 of them are a megabyte, and 12
async def test_a_images_are_batched_whatever_their_size_and_layout(side: int) -> None:
    whole = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    images = [whole, whole[::-1], whole.swapaxes(0, 1), rng.integers(0, 256, whole.shape, dtype=np.uint8)]
    async with running() as rig:
        await rig.occupy()
        waiting = [rig.submit(pixels) for pixels in images]
        rig.backend.free.set()
        answers = [await ticket.logits() for ticket in waiting]
        np.testing.assert_array_equal(np.stack(answers), logits_of(np.stack(images)))
        assert rig.backend.batches == [1, 4]


async def test_b_a_failing_batch_fails_its_callers_and_the_next_batch_works() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        callers = [rig.submit().logits() for _ in range(3)]
        rig.backend.error = ValueError("broken")
        rig.backend.free.set()
        errors = [await error_of(each) for each in [busy, *callers]]
        assert {type(each) for each in errors} == {InternalError}
        assert "broken" not in errors[0].detail
        rig.backend.error = None
        pixels = random_pixels()
        np.testing.assert_array_equal(await rig.submit(pixels).logits(), logits_of(pixels[np.newaxis])[0])


async def test_c_a_cancelled_caller_does_not_disturb_its_batch_mates() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        images = [random_pixels() for _ in range(3)]
        callers = [asyncio.create_task(rig.submit(pixels).logits()) for pixels in images]
        await asyncio.sleep(0)
        callers[1].cancel()
        rig.backend.free.set()
        await busy
        answers = [await callers[0], await callers[2]]
        np.testing.assert_array_equal(np.stack(answers), logits_of(np.stack([images[0], images[2]])))
        with pytest.raises(asyncio.CancelledError):
            await callers[1]


async def test_c_a_caller_cancelled_while_its_batch_runs_does_not_disturb_its_mates() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
        rig.backend.free.set()
        pixels = random_pixels()
        np.testing.assert_array_equal(await rig.submit(pixels).logits(), logits_of(pixels[np.newaxis])[0])
        assert rig.deaths == []


async def test_d_work_that_is_abandoned_before_its_batch_forms_never_runs() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        abandoned = rig.submit()
        abandoned.abandon()
        assert isinstance(await error_of(abandoned.logits()), ClientClosed)
        kept = rig.submit()
        rig.backend.free.set()
        await asyncio.gather(busy, kept.logits())
        assert rig.backend.batches == [1, 1]
        assert (rig.batcher.waiting, rig.batcher.running) == (0, 0)


async def test_d_work_that_expires_in_the_queue_never_runs() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        late = rig.submit()
        late.deadline = time.monotonic()
        assert isinstance(await error_of(late.logits()), DeadlineExceeded)
        rig.backend.free.set()
        await busy
        await eventually(lambda: rig.batcher.waiting == 0)
        assert rig.backend.batches == [1]


async def test_d_the_device_thread_itself_drops_what_expired() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        late = rig.submit()
        late.deadline = time.monotonic()  # nobody awaits it, so only the device thread can notice
        rig.backend.free.set()
        await busy
        assert isinstance(await error_of(late.future), DeadlineExceeded)
        assert rig.backend.batches == [1]


async def test_e_a_full_queue_refuses_at_once_and_takes_nothing() -> None:
    async with running(max_queue=3) as rig:
        busy = await rig.occupy()
        waiting = [rig.submit() for _ in range(3)]
        with pytest.raises(Overloaded, match="queue is full") as refused:
            rig.batcher.reserve(far())
        assert refused.value.retry_after is not None
        assert refused.value.retry_after >= 1
        with pytest.raises(Overloaded):
            rig.batcher.refuse_when_full()
        assert rig.batcher.waiting == 3
        rig.backend.free.set()
        await asyncio.gather(busy, *(each.logits() for each in waiting))
        assert rig.batcher.waiting == 0
        rig.batcher.refuse_when_full()


async def test_e_images_that_arrive_together_are_admitted_together_or_not_at_all() -> None:
    async with running(max_queue=3) as rig:
        with pytest.raises(Overloaded):
            rig.batcher.reserve(far(), images=4)
        assert rig.batcher.waiting == 0


async def test_f_a_lone_image_leaves_at_once_when_the_device_is_idle() -> None:
    async with running(max_batch=32) as rig:
        for _ in range(3):
            await rig.submit().logits()
        assert rig.backend.batches == [1, 1, 1]


async def test_g_what_gathered_while_the_device_was_busy_runs_together_up_to_the_limit() -> None:
    async with running(max_batch=4) as rig:
        busy = await rig.occupy()
        waiting = [rig.submit() for _ in range(10)]
        rig.backend.free.set()
        await asyncio.gather(busy, *(each.logits() for each in waiting))
        assert rig.backend.batches == [1, 4, 4, 2]


async def test_h_stop_answers_what_is_queued_and_refuses_new_work() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        pixels = random_pixels()
        queued = rig.submit(pixels)
        (decoding,) = rig.batcher.reserve(far())
        stopping = asyncio.create_task(rig.batcher.stop(grace=5))
        await asyncio.sleep(0.01)
        with pytest.raises(Draining):
            rig.batcher.reserve(far())
        rig.batcher.enqueue(decoding, pixels)
        rig.backend.free.set()
        await busy
        for ticket in (queued, decoding):
            np.testing.assert_array_equal(await ticket.logits(), logits_of(pixels[np.newaxis])[0])
        await stopping


async def test_h_stop_waits_for_an_image_that_is_still_being_decoded() -> None:
    async with running() as rig:
        (decoding,) = rig.batcher.reserve(far())
        stopping = asyncio.create_task(rig.batcher.stop(grace=5))
        await asyncio.sleep(0.05)
        pixels = random_pixels()
        rig.batcher.enqueue(decoding, pixels)
        np.testing.assert_array_equal(await decoding.logits(), logits_of(pixels[np.newaxis])[0])
        await stopping


async def test_h_a_hung_device_does_not_keep_callers_beyond_the_grace() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        queued = rig.submit()
        (decoding,) = rig.batcher.reserve(far())
        await rig.batcher.stop(grace=0.05)
        assert isinstance(await error_of(queued.logits()), Draining)
        rig.batcher.enqueue(decoding, random_pixels())
        assert isinstance(await error_of(decoding.logits()), ModelUnavailable)
        rig.backend.free.set()
        await busy


async def test_i_a_dead_device_thread_is_reported_and_leaves_nobody_waiting() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        queued = rig.submit()
        (decoding,) = rig.batcher.reserve(far())
        rig.backend.error = SystemExit("killed")
        rig.backend.free.set()
        assert isinstance(await error_of(busy), ModelUnavailable)
        assert isinstance(await error_of(queued.logits()), ModelUnavailable)
        rig.batcher.enqueue(decoding, random_pixels())
        assert isinstance(await error_of(decoding.logits()), ModelUnavailable)
        await eventually(lambda: rig.deaths == ["the device thread of colours 1 died"])
        with pytest.raises(ModelUnavailable):
            rig.batcher.reserve(far())
        assert (rig.batcher.waiting, rig.batcher.running) == (0, 0)


async def test_j_a_batch_gives_the_same_answer_as_a_batch_of_one() -> None:
    async with running(max_batch=16) as rig:
        images = [random_pixels() for _ in range(16)]
        alone = [await rig.submit(pixels).logits() for pixels in images]
        busy = await rig.occupy()
        together = [rig.submit(pixels) for pixels in images]
        rig.backend.free.set()
        await busy
        np.testing.assert_allclose(
            np.stack([await each.logits() for each in together]), np.stack(alone), rtol=0, atol=1e-4
        )
        assert rig.backend.batches[-1] == 16


async def test_a_rejected_image_gives_its_place_back() -> None:
    async with running(max_queue=1) as rig:
        (ticket,) = rig.batcher.reserve(far())
        rig.batcher.reject(ticket, InternalError())
        assert isinstance(await error_of(ticket.logits()), InternalError)
        await rig.submit().logits()
        assert rig.batcher.waiting == 0


async def test_a_model_that_does_not_answer_every_image_fails_its_batch_and_nothing_else() -> None:
    async with running() as rig:
        busy = await rig.occupy()
        callers = [rig.submit().logits() for _ in range(3)]
        right, rig.batcher._run = rig.batcher._run, lambda images, **_: Outputs(logits_of(images)[:1])
        rig.backend.free.set()
        await busy
        assert [type(await error_of(each)) for each in callers] == [InternalError] * 3
        rig.batcher._run = right
        await rig.submit().logits()
        assert rig.deaths == []


async def test_callers_who_gave_up_free_their_places_at_once() -> None:
    async with running(max_queue=2) as rig:
        busy = await rig.occupy()
        late = rig.submit()
        late.deadline = time.monotonic()
        gone = rig.submit()
        gone.abandon()
        assert isinstance(await error_of(late.logits()), DeadlineExceeded)
        assert isinstance(await error_of(gone.logits()), ClientClosed)
        waiting = [rig.submit(), rig.submit()]
        rig.backend.free.set()
        await asyncio.gather(busy, *(each.logits() for each in waiting))
        assert sum(rig.backend.batches) == 3


async def test_how_long_nothing_was_asked_says_nothing_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("service.batching.time", SimpleNamespace(monotonic=lambda: now))
    async with running(seconds=5e-3) as rig:
        (undecodable,) = rig.batcher.reserve(far())
        await rig.submit().logits()
        undecodable.abandon()
        assert isinstance(await error_of(undecodable.logits()), ClientClosed)
        await eventually(lambda: rig.batcher.waiting == 0)
        now += 1.0
        await rig.submit().logits()
        busy = await rig.occupy()
        tickets = rig.batcher.reserve(now + 0.5, 20)
        for each in tickets:
            each.deadline = far()
        rig.batcher.enqueue_all({ticket: random_pixels() for ticket in tickets})
        rig.backend.free.set()
        await asyncio.gather(busy, *(ticket.logits() for ticket in tickets))


async def test_an_idle_device_is_tried_however_slow_it_was() -> None:
    async with running(seconds=5e-3) as rig:
        rig.backend.seconds = 0.3
        for _ in range(3):
            await rig.submit().logits()
        rig.backend.seconds = 0.0
        tickets = rig.batcher.reserve(time.monotonic() + 0.5, 8)
        for each in tickets:
            each.deadline = far()
        rig.batcher.enqueue_all({ticket: random_pixels() for ticket in tickets})
        assert len(await asyncio.gather(*(ticket.logits() for ticket in tickets))) == 8


async def test_what_cannot_be_answered_in_time_is_refused_at_once_with_an_honest_wait() -> None:
    async with running(max_batch=1, seconds=0.2) as rig:
        rig.backend.hold()
        waiting = [rig.submit() for _ in range(10)]
        with pytest.raises(Overloaded) as refused:
            rig.batcher.reserve(time.monotonic() + 1)
        assert refused.value.retry_after is not None
        # The device may or may not have taken the first of them.
        assert math.ceil(9 * 0.2) <= refused.value.retry_after <= math.ceil(10 * 0.2)
        waiting += rig.batcher.reserve(far())
        for ticket in waiting:
            ticket.abandon()
            await error_of(ticket.logits())


async def order_of(rig: Rig, submitted: list[Ticket]) -> list[Priority]:
    """The priorities of what was submitted, in the order in which it left a device that takes one at a time."""
    done: list[Priority] = []
    for ticket in submitted:
        ticket.future.add_done_callback(partial(lambda priority, _: done.append(priority), ticket.priority))
    rig.backend.free.set()
    await asyncio.gather(*(ticket.logits() for ticket in submitted))
    return done


async def test_high_priority_overtakes_and_low_priority_waits_but_is_not_starved() -> None:
    async with running(max_batch=1, max_queue=200) as rig:
        await rig.occupy()
        submitted = [rig.submit(priority=Priority.LOW) for _ in range(5)]
        submitted += [rig.submit(priority=Priority.NORMAL) for _ in range(20)]
        submitted += [rig.submit(priority=Priority.HIGH) for _ in range(80)]
        order = await order_of(rig, submitted)
    assert order[:3] == [Priority.HIGH] * 3
    first_turn = order[:21]
    assert [first_turn.count(each) for each in (Priority.HIGH, Priority.NORMAL, Priority.LOW)] == [16, 4, 1]


async def test_in_a_full_queue_a_higher_priority_takes_the_place_of_the_youngest_low_one() -> None:
    async with running(max_queue=3) as rig:
        busy = await rig.occupy()
        low = [rig.submit(priority=Priority.LOW) for _ in range(3)]
        with pytest.raises(Overloaded):
            rig.batcher.reserve(far(), priority=Priority.LOW)
        normal = rig.submit()
        refused = await error_of(low[2].logits())
        assert isinstance(refused, Overloaded)
        assert (refused.retry_after or 0) >= 1
        with pytest.raises(Overloaded):
            rig.batcher.reserve(far(), images=3)
        assert rig.batcher.waiting == 3
        rig.backend.free.set()
        await asyncio.gather(busy, normal.logits(), low[0].logits(), low[1].logits())
        assert (rig.batcher.waiting, rig.batcher.running) == (0, 0)


async def test_a_high_request_is_not_refused_for_the_low_ones_that_it_overtakes() -> None:
    async with running(max_batch=1, seconds=0.2) as rig:
        busy = await rig.occupy()
        low = [rig.submit(priority=Priority.LOW) for _ in range(20)]
        with pytest.raises(Overloaded):
            rig.batcher.reserve(time.monotonic() + 1, priority=Priority.LOW)
        high = rig.submit(deadline=time.monotonic() + 1, priority=Priority.HIGH)
        high.deadline = far()
        rig.backend.free.set()
        await asyncio.gather(busy, high.logits(), *(each.logits() for each in low))


async def test_a_deadline_shorter_than_the_model_itself_is_refused_at_once() -> None:
    async with running(seconds=0.5) as rig:
        with pytest.raises(Overloaded, match="longer deadline"):
            rig.batcher.reserve(time.monotonic() + 0.4)
        assert rig.batcher.waiting == 0


async def test_the_batch_shrinks_to_keep_the_earliest_deadline() -> None:
    async with running(max_batch=4, seconds=0.001) as rig:
        rig.batcher._costs = replace(
            rig.batcher._costs,
            table=tuple(replace(each, seconds=each.size * 10) for each in rig.batcher._costs.table),
        )
        busy = await rig.occupy()
        waiting = [rig.submit(deadline=time.monotonic() + 25), *(rig.submit() for _ in range(3))]
        rig.backend.free.set()
        await asyncio.gather(busy, *(each.logits() for each in waiting))
        assert rig.backend.batches == [1, 2, 2]


async def test_idle_lanes_share_what_waits() -> None:
    async with running(max_batch=8, lanes=2) as rig:
        rig.backend.hold()
        running_now = [rig.submit(), rig.submit()]
        await eventually(lambda: rig.batcher.running == 2)
        waiting = [rig.submit() for _ in range(8)]
        rig.backend.free.set()
        await asyncio.gather(*(each.logits() for each in [*running_now, *waiting]))
        assert sum(rig.backend.batches) == 10
        assert (rig.batcher.waiting, rig.batcher.running) == (0, 0)


async def test_a_free_lane_leaves_the_busy_one_its_share() -> None:
    sizes: list[int] = []
    gates = [threading.Event(), threading.Event()]
    async with running(max_batch=8, lanes=2) as rig:

        def run(images: Pixels, **_: object) -> Outputs:
            sizes.append(len(images))
            if len(sizes) <= len(gates):
                assert gates[len(sizes) - 1].wait(PATIENCE)
            return Outputs(logits_of(images))

        rig.batcher._run = run
        tickets = []
        for busy in (1, 2):
            tickets.append(rig.submit())
            await eventually(lambda: len(sizes) == busy)  # noqa: B023
        tickets += [rig.submit() for _ in range(8)]
        gates[0].set()
        await asyncio.gather(*(each.logits() for each in [tickets[0], *tickets[2:]]))
        assert sizes == [1, 1, 5, 2, 1]
        gates[1].set()
        await tickets[1].logits()


async def test_a_device_that_prepares_for_sizes_is_given_no_other() -> None:
    backend = ColourBackend()
    costs = costs_up_to(4)
    table = tuple(replace(each, used=each.size != 3) for each in costs.table)
    batcher = Batcher(
        "colours 1",
        backend.run,
        costs=replace(costs, table=table),
        max_queue=8,
        metrics=Metrics(CollectorRegistry()),
        fixed_sizes=True,
    )
    batcher.start(asyncio.get_running_loop(), lambda _: None)
    images = [random_pixels() for _ in range(3)]
    tickets = batcher.reserve(far(), images=3)
    batcher.enqueue_all(dict(zip(tickets, images, strict=True)))
    answers = [await ticket.logits() for ticket in tickets]
    np.testing.assert_array_equal(np.stack(answers), logits_of(np.stack(images)))
    assert backend.batches == [4]
    await batcher.stop(grace=5)


async def test_not_one_image_starts_after_its_deadline_or_after_its_caller_left() -> None:
    tickets: list[Ticket] = []
    left: dict[Ticket, float] = {}
    async with running(max_batch=4, max_queue=1000, lanes=2) as rig:
        rig.backend.seconds = 0.004

        async def caller(number: int) -> None:
            try:
                ticket = rig.submit(deadline=time.monotonic() + (rng.uniform(0.001, 0.1) if number % 5 == 0 else 3600))
            except Overloaded:
                return
            tickets.append(ticket)
            if number % 7 == 0:
                await asyncio.sleep(rng.uniform(0, 0.1))
                ticket.abandon()
                left[ticket] = time.monotonic()
            await asyncio.gather(ticket.logits(), return_exceptions=True)

        await asyncio.gather(*(caller(number) for number in range(300)))
        await eventually(lambda: (rig.batcher.waiting, rig.batcher.running) == (0, 0))
        ran = [each for each in tickets if each.stages.queue]
    moment = 1e-6  # of rounding
    late = [
        each
        for each in ran
        if each.queued_at + each.stages.queue > min(each.deadline, left.get(each, math.inf)) + moment
    ]
    assert late == []
    assert len(ran) < 300, "nothing expired or was abandoned, so nothing was proved"


async def test_a_batch_that_does_not_fit_the_device_is_split_and_answered() -> None:
    async with running(max_batch=4) as rig:
        rig.backend.most = 1
        rig.backend.hold()
        images = [random_pixels() for _ in range(6)]
        tickets = [rig.submit(pixels) for pixels in images]
        await asyncio.to_thread(rig.backend.busy.wait)
        rig.backend.free.set()
        logits = await asyncio.gather(*(ticket.logits() for ticket in tickets))
        np.testing.assert_array_equal(np.stack(logits), logits_of(np.stack(images)))
        failures = rig.failures("out_of_memory")
        assert failures > 0
        rig.backend.batches.clear()
        await asyncio.gather(*(rig.submit().logits() for _ in range(8)))
        assert set(rig.backend.batches) == {1}, "a size that failed is not tried again"
        assert rig.failures("out_of_memory") == failures


async def test_an_image_that_never_fits_the_device_gets_503_and_the_next_one_is_tried() -> None:
    async with running() as rig:
        rig.backend.most = 0
        with pytest.raises(ModelUnavailable):
            await rig.submit().logits()
        rig.backend.most = None
        await rig.submit().logits()
        assert not rig.deaths


async def test_a_lost_device_ends_the_process_and_leaves_nobody_waiting() -> None:
    async with running(max_batch=1) as rig:
        rig.backend.error = failure_of(RuntimeError("CUDA failure 700: an illegal memory access was encountered"))
        tickets = [rig.submit() for _ in range(5)]
        for ticket in tickets:
            with pytest.raises(ModelUnavailable):
                await ticket.logits()
        await asyncio.sleep(0)
        assert rig.deaths == ["the device of colours 1 is lost"]
        with pytest.raises(ModelUnavailable):
            rig.submit()


async def test_a_hung_device_is_found_and_its_callers_and_those_behind_them_get_503() -> None:
    async with running(max_batch=1, patience=1.0) as rig:
        rig.backend.hold()
        tickets = [rig.submit() for _ in range(3)]
        await asyncio.to_thread(rig.backend.busy.wait)
        for _ in range(4):
            rig.batcher.watch(0.25)
        assert not rig.deaths, "it has its whole time"
        rig.batcher.watch(0.25)
        for ticket in tickets:
            with pytest.raises(ModelUnavailable):
                await ticket.logits()
        assert rig.deaths == ["the device has not answered colours 1 for 1.0 s"]
        assert rig.failures("hung") == 1
        rig.backend.free.set()


async def test_a_process_that_was_stopped_for_long_has_not_hung() -> None:
    async with running(max_batch=1, patience=1.0) as rig:
        rig.backend.seconds = 1.5
        ticket = rig.submit()
        rig.batcher.watch(0.25)  # the only look in all the time: the watchdog was stopped as well
        await ticket.logits()
        rig.batcher.watch(0.25)
        assert not rig.deaths


def test_failures_are_told_by_the_words_of_their_libraries() -> None:
    for words in (
        "Non-zero status code while running Conv node. Failed to allocate memory for requested buffer of size 1",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "bad_alloc",
    ):
        assert isinstance(failure_of(RuntimeError(words)), OutOfDeviceMemory)
    assert isinstance(failure_of(MemoryError()), OutOfDeviceMemory)
    for words in ("CUDA failure 719: unspecified launch failure", "device-side assert triggered"):
        assert isinstance(failure_of(RuntimeError(words)), DeviceLost)
    other = RuntimeError("Got invalid dimensions for input")
    assert failure_of(other) is other


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
@pytest.mark.parametrize(
    ("lanes", "seconds", "on_gpu", "gives_way"),
    [(1, 0.05, False, False), (2, 1e-4, False, False), (2, 0.05, False, True), (2, 0.05, True, False)],
)
async def test_a_lane_that_computes_for_long_on_its_own_thread_gives_way_to_the_event_loop(
    lanes: int, seconds: float, on_gpu: bool, gives_way: bool
) -> None:
    priorities: list[int] = []

    def run(images: Pixels, **_: object) -> Outputs:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return Outputs(logits_of(images))

    metrics = Metrics(CollectorRegistry())
    costs = costs_up_to(1, lanes, seconds)
    batcher = Batcher("colours 1", run, costs=costs, max_queue=4, metrics=metrics, fixed_sizes=on_gpu)
    batcher.start(asyncio.get_running_loop(), lambda _: None)
    (ticket,) = batcher.reserve(far())
    batcher.enqueue(ticket, random_pixels())
    await ticket.logits()
    await batcher.stop(5)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert (priorities[0] > own) == gives_way
