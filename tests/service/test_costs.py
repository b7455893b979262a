"""What the measured table decides, on a machine whose runs take as long as they are told."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor

import pytest

from service.costs import Arrangement, Cost, Costs, TooLarge, measure, rehearse

BOTH: dict[Arrangement, int] = {"together": 1, "spread": 2}


class Machine:
    """`time`, and a device whose runs take as long as they are told by this clock, and none by any other."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def side_by_side(self, _: Executor, work: Callable[[], None], lanes: int) -> None:
        """Each lane's work, one after the other; the slowest says how long it took."""
        began, ends = self.now, []
        for _lane in range(lanes):
            self.now = began
            work()
            ends.append(self.now)
        self.now = max(ends)

    def measured(self, seconds: Callable[[int, Arrangement], float], sizes: tuple[int, ...] = (1, 2, 4, 8)) -> Costs:
        return measure(lambda size, arrangement: self.sleep(seconds(size, arrangement)), BOTH, sizes, lambda *_: None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr("service.costs.time", machine)
    monkeypatch.setattr("service.costs._on_every_lane", machine.side_by_side)
    return machine


def test_a_small_network_is_run_on_one_core_each_with_one_copy_of_the_weights(machine: Machine) -> None:
    costs = machine.measured(lambda size, arrangement: 0.01 * size)
    assert (costs.lone, costs.crowd, costs.lanes) == ("spread", "spread", 2)
    assert costs.arrangements == {"spread"}


def test_a_large_network_answers_a_lone_image_on_all_cores_and_a_crowd_on_one_core_each(machine: Machine) -> None:
    costs = machine.measured(lambda size, arrangement: size * (0.03 if arrangement == "spread" else 0.02))
    assert (costs.lone, costs.crowd) == ("together", "spread")
    assert costs.arrangements == {"together", "spread"}
    assert costs.lone_seconds < 0.03


def test_an_arrangement_that_no_batch_could_make_the_better_one_is_not_timed_further(machine: Machine) -> None:
    timed: set[tuple[int, Arrangement]] = set()

    def seconds(size: int, arrangement: Arrangement) -> float:
        timed.add((size, arrangement))
        return size * (0.02 if arrangement == "spread" else 0.018)

    costs = machine.measured(seconds)
    assert (costs.lone, costs.crowd) == ("together", "spread")
    assert (2, "spread") in timed
    assert (2, "together") not in timed


def test_a_second_copy_of_the_weights_needs_a_reason(machine: Machine) -> None:
    costs = machine.measured(lambda size, arrangement: size * (0.06 if arrangement == "spread" else 0.02))
    assert costs.arrangements == {"together"}
    assert costs.lanes == 1


def test_first_runs_which_allocate_decide_nothing(machine: Machine) -> None:
    seen = set()

    def seconds(size: int, arrangement: Arrangement) -> float:
        first = (size, arrangement) not in seen
        seen.add((size, arrangement))
        return size * (0.09 if first else 0.03)

    assert machine.measured(seconds).crowd == "spread"


def test_one_slow_run_rules_no_arrangement_out(machine: Machine) -> None:
    calls: Counter[Arrangement] = Counter()

    def seconds(size: int, arrangement: Arrangement) -> float:
        calls[arrangement] += 1
        if arrangement == "spread":
            return size * 0.06
        return size * (0.09 if calls[arrangement] == 1 else 0.04)

    assert machine.measured(seconds).lone == "together"


def test_a_machine_that_is_slow_for_a_moment_changes_no_arrangement(machine: Machine) -> None:
    def seconds(size: int, arrangement: Arrangement) -> float:
        slow = 2 if machine.now < 0.2 else 1
        return slow * size * (0.06 if arrangement == "spread" else 0.04)

    assert machine.measured(seconds).lone == "together"


def test_sizes_that_do_not_pay_are_dropped(machine: Machine) -> None:
    costs = machine.measured(lambda size, _: 0.01 if size <= 2 else 0.01 * size)
    assert costs.sizes == (1, 2)
    assert [cost.size for cost in costs.table] == [1, 2, 4, 8]


def test_the_search_among_large_batches_is_bounded(machine: Machine) -> None:
    timed = set()

    def seconds(size: int, _: Arrangement) -> float:
        timed.add(size)
        return 0.03 * size

    costs = machine.measured(seconds, sizes=(1, 2, 4, 8, 16, 32))
    assert timed == {1, 2}, "two runs of these two take 0.2 s, and of the next alone 0.24"
    assert costs.sizes == (1, 2, 4), "batches of 8 would take 0.24 s, for which nobody urgent should wait"
    assert costs.table[2].seconds == pytest.approx(0.12, rel=0.1)


def test_where_batches_may_take_longer_than_their_images_only_sizes_that_ran_are_used(machine: Machine) -> None:
    ran = set()

    def run(size: int, _: Arrangement) -> None:
        ran.add(size)
        machine.sleep(0.002 + 0.004 * size)

    costs = measure(run, {"together": 1}, (1, 2, 4, 8, 16, 32), lambda *_: None, linear=False)
    assert {cost.size for cost in costs.table} == ran
    assert 32 not in ran


@pytest.mark.parametrize(("copying", "computing_beside", "crowd"), [(0.06, 0.06, "spread"), (0.0, 0.07, "together")])
def test_two_runs_at_once_on_a_gpu_are_used_where_one_copies_while_the_other_computes(
    copying: float, computing_beside: float, crowd: Arrangement
) -> None:
    free = threading.Lock()

    def run(_: int, arrangement: Arrangement) -> None:
        time.sleep(copying)
        with free:
            time.sleep(computing_beside if arrangement == "spread" else 0.06)

    costs = measure(run, BOTH, (1,), lambda *_: None, linear=False)
    assert (costs.crowd, costs.lanes) == (crowd, BOTH[crowd])


def images_in_memory(room: int) -> Callable[[int, Arrangement], None]:
    """A run on a device with room for so many images at once."""
    used, lock = [0], threading.Lock()

    def run(size: int, _: Arrangement) -> None:
        with lock:
            if used[0] + size > room:
                raise TooLarge("no memory")
            used[0] += size
        time.sleep(0.03)
        with lock:
            used[0] -= size

    return run


def test_sizes_for_which_there_is_no_memory_are_not_used() -> None:
    costs = measure(images_in_memory(5), {"together": 1}, (1, 2, 4, 8, 16), lambda *_: None, linear=False)
    assert costs.sizes == (1, 2, 4)
    assert (costs.crowd, costs.table[-1].size) == ("together", 4)
    costs = measure(images_in_memory(4), BOTH, (1, 2, 4, 8), lambda *_: None, linear=False)
    assert costs.table[-1].size * costs.lanes == 4


def test_an_arrangement_for_which_there_is_no_memory_is_not_used() -> None:
    costs = measure(images_in_memory(1), BOTH, (1, 2), lambda *_: None, linear=False)
    assert (costs.crowd, costs.lanes, costs.sizes) == ("together", 1, (1,))
    with pytest.raises(TooLarge):
        measure(images_in_memory(0), BOTH, (1, 2), lambda *_: None, linear=False)


def test_batches_that_are_slower_than_their_images_are_not_expected_to_pay(machine: Machine) -> None:
    costs = machine.measured(lambda size, _: 0.03 if size == 1 else 0.06 * size)
    assert costs.sizes == (1,)


def test_a_size_that_was_timed_while_the_machine_was_a_little_slow_is_used_all_the_same(machine: Machine) -> None:
    costs = machine.measured(lambda size, _: 0.01 * size * (1.3 if size == 2 else 1.0))
    assert costs.sizes == (1, 2, 4, 8)
    assert costs.table[1].seconds > 0.026, "deadlines go by what was timed"


def test_every_lane_is_busy_while_a_size_is_timed() -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def run(size: int, arrangement: Arrangement) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1

    measure(run, {"spread": 3}, (1,), lambda *_: None)
    assert most[0] == 3


def test_beside_traffic_nothing_is_decided_by_how_long_a_batch_waited_for_a_core(machine: Machine) -> None:
    ran: set[tuple[int, Arrangement]] = set()

    def run(size: int, arrangement: Arrangement) -> None:
        ran.add((size, arrangement))
        waited = 5 if arrangement == "spread" else 1
        machine.sleep(0.005 * waited)

    costs = measure(run, BOTH, (1, 2, 4, 8, 16), lambda *_: None, quiet=False)
    assert ran == {(1, "together"), (1, "spread")}
    assert (costs.crowd, costs.lanes) == ("spread", 2)
    assert costs.sizes == (1, 2, 4, 8), "one image takes both cores 5 ms, so 16 take one of them 160"
    assert costs.table[3].seconds == pytest.approx(0.083, rel=0.1)


def test_beside_traffic_only_one_arrangement_is_kept_without_a_reason_for_two(machine: Machine) -> None:
    costs = measure(lambda *_: machine.sleep(0.005), BOTH, (1, 2), lambda *_: None, quiet=False)
    assert costs.arrangements == {"spread"}


def test_a_gpu_is_timed_beside_traffic_too_as_it_uses_only_what_ran(machine: Machine) -> None:
    ran = set()

    def run(size: int, _: Arrangement) -> None:
        ran.add(size)
        machine.sleep(0.001)

    costs = measure(run, {"together": 1}, (1, 2, 4), lambda *_: None, linear=False, quiet=False)
    assert {cost.size for cost in costs.table} == ran == {1, 2, 4}


@pytest.mark.parametrize(("linear", "sizes"), [(True, (1, 2)), (False, (1, 2, 8))])
def test_what_is_known_is_rehearsed_on_every_lane(linear: bool, sizes: tuple[int, ...]) -> None:
    ran: Counter[tuple[int, Arrangement]] = Counter()
    lock = threading.Lock()

    def run(size: int, arrangement: Arrangement) -> None:
        with lock:
            ran[size, arrangement] += 1

    table = tuple(Cost(size, 0.01, 100 * size, used=size != 4) for size in (1, 2, 4, 8))
    rehearse(run, Costs("together", 0.01, "spread", 2, table), linear=linear)
    assert ran == {(1, "together"): 1} | {(size, "spread"): 2 for size in sizes}


def test_the_size_with_the_best_rate_that_keeps_a_deadline_is_chosen() -> None:
    table = (Cost(1, 0.01, 100, True), Cost(2, 0.015, 133, True), Cost(8, 0.05, 160, True), Cost(16, 0.1, 160, False))
    costs = Costs("together", 0.01, "together", 1, table)
    assert [costs.largest_within(seconds) for seconds in (1, 0.04, 0.012, 0.001)] == [8, 2, 1, 1]
    assert [costs.covering(images) for images in (1, 2, 3, 8, 9)] == [1, 2, 8, 8, 9]
