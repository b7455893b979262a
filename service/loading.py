"""From a model file to a loaded model that is proved and warm."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from service.artifact import ArtifactError, ModelCard
from service.cam import Head
from service.costs import Arrangement, Costs, TooLarge, measure, rehearse
from service.folder import Location
from service.golden import MOST_AT_ONCE, GoldenMismatch
from service.lifecycle import LOADING
from service.opening import Opened, Opener, Progress, state
from service.runtime import Backend, DeviceError, OutOfDeviceMemory
from service.watched import Fingerprint

log = logging.getLogger(__name__)

EXPECTED_FAILURES = (ArtifactError, GoldenMismatch, DeviceError, TooLarge, OSError)


@dataclass(frozen=True)
class LoadedModel:
    """A model that passed its golden replay and its warm-up; `files` is the state of its files before it was opened."""

    location: Location
    files: Fingerprint
    card: ModelCard
    backend: Backend
    costs: Costs
    head: Head | None
    golden_max_abs_diff: float | None
    seconds: float


class Timed(NamedTuple):
    """A model whose batches were timed here, and on which device."""

    card: ModelCard
    device: str
    costs: Costs


def load(
    location: Location,
    opener: Opener,
    max_batch: int,
    progress: Progress,
    *,
    timed: Sequence[Timed] = (),
    beside_traffic: bool = False,
) -> LoadedModel:
    """Open one model and measure what its batches cost, with its golden images, telling `progress` the phase.

    A model of the same layers as one that was `timed` before costs what that one does, and is not timed again. Beside
    traffic the calling thread leaves the cores to it, for good.

    Raises:
        ArtifactError, GoldenMismatch, DeviceError, TooLarge, OSError: why this model cannot be served.
    """
    progress(LOADING)
    files = state(location)
    opened = opener.open(location, progress, beside_traffic=beside_traffic)
    opened_at = time.monotonic()
    costs = _warm_up(opened, max_batch, progress, timed, quiet=not beside_traffic)
    difference = opened.replay.finish((costs.crowd, costs.lone), min(MOST_AT_ONCE, max(costs.sizes)))
    if difference is None:
        log.warning("%s has no golden images: nothing proves that it answers as it was trained", location)
    opened.backend.keep(costs.arrangements)
    seconds = opened.seconds + time.monotonic() - opened_at
    return LoadedModel(location, files, opened.card, opened.backend, costs, opened.head, difference, seconds)


def _warm_up(opened: Opened, max_batch: int, progress: Progress, timed: Sequence[Timed], *, quiet: bool) -> Costs:
    """Time the batch sizes, unless they are known; it also shows a graph that answers only the first image, and lets
    CUDA see every size."""
    largest = 0

    def run(size: int, arrangement: Arrangement) -> None:
        nonlocal largest
        largest = max(largest, size)
        try:
            opened.replay.run(size, arrangement)
        except OutOfDeviceMemory as error:
            raise TooLarge(f"a batch of {size} needs more memory than the device has free: {error}") from error

    def tell(*step: int) -> None:
        progress("warmup {}/{}".format(*step))

    backend = opened.backend
    linear = backend.device == "cpu"
    sizes = _powers_of_two(backend.input.shape[0] or max_batch)
    known = _known_costs(opened, sizes, timed)
    if known is not None:
        tell(1, 1)
        try:
            rehearse(run, known, linear=linear)
        except TooLarge as error:  # there was more memory then
            log.info("%s is timed anew: %s", opened.card.name, error)
        else:
            return known
    costs = measure(run, backend.lanes, sizes, tell, linear=linear, quiet=quiet)
    if largest == 1 and len(costs.sizes) > 1:
        run(costs.sizes[1], costs.crowd)
    return costs


def _known_costs(opened: Opened, sizes: tuple[int, ...], timed: Sequence[Timed]) -> Costs | None:
    """Those of a model of the same layers on the same device, if they are possible here."""
    backend, work = opened.backend, _work(opened.card)
    if work is None:
        return None
    for card, device, costs in timed:
        possible = costs.lone in backend.lanes and backend.lanes.get(costs.crowd) == costs.lanes
        if device == backend.device and _work(card) == work and possible and max(costs.sizes) <= max(sizes):
            return costs
    return None


def _work(card: ModelCard) -> tuple[object, ...] | None:
    """What is the same for models whose runs take as long; None where it is not known."""
    if card.structure is None:
        return None
    target = card.quantisation.target if card.quantisation else None
    return card.structure, card.precision, target, card.input, len(card.labels)


def _powers_of_two(limit: int) -> tuple[int, ...]:
    return tuple(sorted({min(2**power, limit) for power in range(limit.bit_length() + 1)}))


def describe_failure(error: Exception) -> str:
    """Why a load failed, as one line; a failure that we did not foresee is also logged with its traceback."""
    if not isinstance(error, EXPECTED_FAILURES):
        log.error("unexpected failure while loading", exc_info=error)
    return (str(error) or type(error).__name__).splitlines()[0]
