"""What a batch costs: measured at warm-up, for each batch size and each arrangement of runs.

A backend offers two arrangements. `together`: one run at a time, which on a CPU has all cores, so that a lone image of
a large network is soonest done. `spread`: several at once. On a CPU each of them has a core, and loses nothing to
synchronisation under load; on a GPU the images of one are copied while another computes. Which is better, and from
which size on a larger batch brings nothing more, depends on the network and the machine.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

Arrangement = Literal["together", "spread"]
# Runs one batch of so many images, and returns when it is done.
RunBatch = Callable[[int, Arrangement], None]
Progress = Callable[[int, int], None]

# A size pays if it brings so much more images a second than the best one below it.
GAIN = 1.02
# A second arrangement pays if it is so much better; it costs a second copy of the weights.
WORTH_A_COPY = 1.03
# On a CPU there is decoding on the same cores under load: a run on all of them waits for the thread that it holds up,
# where runs side by side do not wait for each other. ResNet-50 float32, a tenth faster side by side when nothing else
# runs, answers a fifth more that way under load. A smaller preference was within the noise of a warm-up.
BESIDE_DECODING: Mapping[Arrangement, float] = {"together": 0.7, "spread": 1.0}
# By so much more images a second do batches bring at most, where an image takes milliseconds: 1.05 to 1.25 times for
# ResNet-18 and ResNet-50. An arrangement that would need more to be the better one is not timed any further.
MILLISECONDS = 3e-3
BATCHES_BRING = 1.3
# What a batch on a CPU costs its lane beside its run: the hand-over between threads, and that networks, decoders and
# the event loop drive each other out of the caches at each change. Without it sizes seem equal, because runs alone take
# as long as their images. Measured at 32 connections: 2.3 to 4.2 ms for ResNet-18 and ResNet-50, int8 and float32. A
# GPU keeps its caches, and what two runs at once hide there, they show when they are timed.
HAND_OVER_SECONDS = 3e-3
# Lanes run so long side by side before they wait for each other, or small networks would be timed by their waiting.
IN_A_ROW_SECONDS = 5e-3
# The sizes that are timed take so long together, as a start is waited for. Larger ones are taken to take as long as
# their images, up to what an urgent request may have to wait for.
SEARCH_SECONDS = 0.25
LONGEST_SECONDS = 0.15
# On a CPU a batch takes no longer than its images. One that seems to was disturbed: where it took more than so many
# times as long it is timed again, and where it took less its size is chosen as if it was as fast as its images.
DISTURBED = 1.5
# A size may bring little where the next one, with full vectors, brings much: two that do not pay end the search.
PATIENCE = 2
# The least of several runs is measured, because other work on the machine only ever adds, and the first run of a size
# allocates; long runs vary less.
LEAST_RUNS = 2
ENOUGH_SECONDS = 0.03
MAX_RUNS = 5
# An arrangement chosen by a stray slow run would be kept for good; one of three long runs is not slow by accident.
MIN_LONE_RUNS = 3
ENOUGH_LONE_SECONDS = 0.08
MAX_LONE_RUNS = 10
# A long run that takes so much more than another arrangement's least is slower, by whatever accident.
HOPELESS = 1.3


class TooLarge(Exception):
    """A batch needs more memory than the device has free. The message is one line."""


@dataclass(frozen=True)
class Cost:
    """Batches of `size` images take `seconds` each while every lane is busy, hand-over included.

    `images_per_second` is what the choice of sizes goes by, which may be more than was timed (DISTURBED).
    """

    size: int
    seconds: float
    images_per_second: float
    used: bool


@dataclass(frozen=True)
class Costs:
    """The table of a model, and what follows from it.

    `lone` is the arrangement for a single image on an idle device, which takes `lone_seconds`; `crowd` is the one for
    everything else, with `lanes` batches side by side.
    """

    lone: Arrangement
    lone_seconds: float
    crowd: Arrangement
    lanes: int
    table: tuple[Cost, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that pay, ascending; 1 is always among them."""
        return tuple(cost.size for cost in self.table if cost.used)

    @property
    def seconds_per_image(self) -> float:
        """At the best rate."""
        return 1 / max(cost.images_per_second for cost in self.table if cost.used)

    @property
    def arrangements(self) -> frozenset[Arrangement]:
        """Those that are used."""
        return frozenset({self.lone, self.crowd})

    def largest_within(self, seconds: float) -> int:
        """The batch size with the best rate among those that are done within so many seconds; 1 if none is."""
        return max((cost.size for cost in self.table if cost.used and cost.seconds <= seconds), default=1)

    def covering(self, images: int) -> int:
        """The smallest size that pays and holds so many images; `images` where none does."""
        return next((size for size in self.sizes if size >= images), images)


def measure(
    run: RunBatch,
    lanes: Mapping[Arrangement, int],
    sizes: tuple[int, ...],
    progress: Progress,
    *,
    linear: bool = True,
    quiet: bool = True,
) -> Costs:
    """Time batches of images and decide on arrangement and sizes.

    Args:
        run: called from as many threads at once as its arrangement has lanes; raises TooLarge.
        lanes: how many runs go side by side in each arrangement that there is.
        sizes: batch sizes to try, ascending from 1; the search ends where larger ones do not pay, or take too long.
        progress: told which of how many steps begins: lone images, then batches in each arrangement.
        linear: whether a batch takes no longer than its images, as on a CPU. A size that takes too long to time is then
            expected to take as long for each image as the one before. A GPU uses only sizes that it has run.
        quiet: whether little else runs. Beside traffic, batches on a CPU would be timed by how long they waited for a
            core: only lone images are timed then, and batches expected to take as long as their images, side by side.

    Raises:
        TooLarge: there is no memory for a single image.
    """
    only_lone = linear and not quiet
    steps = 1 if only_lone else 1 + len(lanes)
    progress(1, steps)
    lone = _lone_seconds(run, lanes)
    worth = BESIDE_DECODING if linear else dict.fromkeys(lanes, 1.0)
    if only_lone:
        crowd = max(lanes, key=lambda each: lanes[each])
        for_an_image = min(seconds * lanes[crowd] / lanes[each] for each, seconds in lone.items())
        return _decided(lone, lanes, {crowd: _expected_table(lanes[crowd], sizes, for_an_image)}, worth)
    tables: dict[Arrangement, tuple[Cost, ...]] = {}
    singly = {each: worth[each] * count / lone[each] for each, count in lanes.items()}
    best = 0.0
    for step, arrangement in enumerate(sorted(lanes, key=lambda each: singly[each], reverse=True), start=2):
        progress(step, steps)
        outdone = BATCHES_BRING * singly[arrangement] < best
        if linear and outdone and lone[arrangement] > MILLISECONDS:
            continue
        table = _table(run, arrangement, lanes[arrangement], sizes, lone[arrangement], linear=linear)
        if table:
            tables[arrangement] = table
            best = max(best, worth[arrangement] * _rate(table))
    if not tables:
        raise TooLarge("the device has no memory for one image at a time")
    return _decided(lone, lanes, tables, worth)


def rehearse(run: RunBatch, costs: Costs, *, linear: bool = True) -> None:
    """Run what will be run, once, of a model whose costs are known.

    Args:
        run: as in `measure`.
        costs: those that are known.
        linear: as in `measure`. Where a batch is no more than its images, two show that each gets an answer of its own;
            a GPU prepares for each size.

    Raises:
        TooLarge: there is no memory for one of the sizes.
    """
    run(1, costs.lone)
    with ThreadPoolExecutor(costs.lanes, thread_name_prefix="warm-up") as pool:
        for size in costs.sizes[:2] if linear else costs.sizes:
            _on_every_lane(pool, partial(run, size, costs.crowd), costs.lanes)


def _decided(
    lone: Mapping[Arrangement, float],
    lanes: Mapping[Arrangement, int],
    tables: Mapping[Arrangement, tuple[Cost, ...]],
    worth: Mapping[Arrangement, float],
) -> Costs:
    """One arrangement for the crowd, of those that have a table, and one for lone images."""
    rates = {each: worth[each] * _rate(table) for each, table in tables.items()}
    crowd = max(rates, key=lambda each: rates[each])
    fastest = min(lone, key=lambda each: lone[each])
    if lone[fastest] * WORTH_A_COPY > lone[crowd]:
        fastest = crowd
    elif rates.get(fastest, 0.0) * WORTH_A_COPY > rates[crowd]:
        crowd = fastest
    return Costs(fastest, lone[fastest], crowd, lanes[crowd], tables[crowd])


def _rate(table: tuple[Cost, ...]) -> float:
    return max(cost.images_per_second for cost in table)


def _expected_table(lanes: int, sizes: tuple[int, ...], for_an_image: float) -> tuple[Cost, ...]:
    """The sizes that pay if batches take as long as their images."""
    table: list[Cost] = []
    for size in sizes:
        expected = for_an_image * size
        if _is_enough(table, expected):
            break
        table.append(_cost(table, lanes, size, expected, for_an_image, HAND_OVER_SECONDS))
    return tuple(table)


def _is_enough(table: Sequence[Cost], expected: float) -> bool:
    """Whether larger batches would take too long, or have ceased to pay."""
    return bool(table) and (expected > LONGEST_SECONDS or not any(each.used for each in table[-PATIENCE:]))


def _cost(table: Sequence[Cost], lanes: int, size: int, seconds: float, for_an_image: float, hand_over: float) -> Cost:
    """The next row of a table; it is judged by what it takes for an image."""
    best = max((each.images_per_second for each in table if each.used), default=0.0)
    rate = lanes * size / (for_an_image * size + hand_over)
    return Cost(size, seconds + hand_over, rate, rate >= best * GAIN)


def _table(
    run: RunBatch, arrangement: Arrangement, lanes: int, sizes: tuple[int, ...], lone: float, *, linear: bool
) -> tuple[Cost, ...]:
    """The sizes for which there is memory, timed as far as it pays to look."""
    table: list[Cost] = []
    for_an_image = lone
    with ThreadPoolExecutor(lanes, thread_name_prefix="warm-up") as pool:
        for size in sizes:
            expected = for_an_image * size
            if _is_enough(table, expected):
                break
            too_long = LEAST_RUNS * (sum(each.seconds for each in table) + expected) > SEARCH_SECONDS
            if table and too_long and not linear:
                break
            if lanes == size == 1:
                seconds = lone
            elif table and too_long:
                seconds = expected
            else:
                in_a_row = math.ceil(IN_A_ROW_SECONDS / expected) if lanes > 1 else 1
                side_by_side = partial(_on_every_lane, pool, partial(_repeat, run, size, arrangement, in_a_row), lanes)
                try:
                    seconds = _least_seconds(side_by_side, expected * in_a_row if table else 0.0) / in_a_row
                except TooLarge:
                    break
            disturbed = linear and table and expected < seconds < DISTURBED * expected
            for_an_image = (expected if disturbed else seconds) / size
            table.append(_cost(table, lanes, size, seconds, for_an_image, HAND_OVER_SECONDS if linear else 0.0))
    return tuple(table)


def _on_every_lane(pool: Executor, work: Callable[[], None], lanes: int) -> None:
    wait_for = [pool.submit(work) for _ in range(lanes)]
    for done in wait_for:
        done.result()


def _repeat(run: RunBatch, size: int, arrangement: Arrangement, times: int) -> None:
    for _ in range(times):
        run(size, arrangement)


def _lone_seconds(run: RunBatch, arrangements: Collection[Arrangement]) -> dict[Arrangement, float]:
    """What a lone image takes in each arrangement: the least of several runs, in turns, as machines vary in speed."""
    taken: dict[Arrangement, list[float]] = {arrangement: [] for arrangement in arrangements}
    for _ in range(MAX_LONE_RUNS):
        least = min((min(each) for each in taken.values() if each), default=math.inf)
        for arrangement, seconds in taken.items():
            hopeless = len(seconds) == LEAST_RUNS and min(seconds) > max(HOPELESS * least, ENOUGH_SECONDS)
            enough = len(seconds) >= MIN_LONE_RUNS and sum(seconds) > ENOUGH_LONE_SECONDS
            if not hopeless and not enough:
                seconds.append(_seconds(partial(run, 1, arrangement)))
    return {arrangement: min(seconds) for arrangement, seconds in taken.items()}


def _least_seconds(work: Callable[[], object], expected: float) -> float:
    """The least of a few runs; more where they are slower than expected (0: nothing is): they allocated, or waited."""
    least = float("inf")
    total = 0.0
    for number in range(1, MAX_RUNS + 1):
        seconds = _seconds(work)
        least = min(least, seconds)
        total += seconds
        if number >= LEAST_RUNS and total > ENOUGH_SECONDS and least <= DISTURBED * (expected or least):
            break
    return least


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
