"""From a model file to a loaded model that is proved and warm."""

import logging
import time
from dataclasses import dataclass

from service.artifact import ArtifactError, ModelCard
from service.cam import Head
from service.costs import Arrangement, Costs, TooLarge, measure
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


def load(
    location: Location,
    opener: Opener,
    max_batch: int,
    progress: Progress,
    *,
    beside_traffic: bool = False,
) -> LoadedModel:
    """Open one model and measure what its batches cost, with its golden images, telling `progress` the phase.

    Beside traffic the calling thread leaves the cores to it, for good.

    Raises:
        ArtifactError, GoldenMismatch, DeviceError, TooLarge, OSError: why this model cannot be served.
    """
    progress(LOADING)
    files = state(location)
    opened = opener.open(location, progress, beside_traffic=beside_traffic)
    opened_at = time.monotonic()
    costs = _warm_up(opened, max_batch, progress)
    difference = opened.replay.finish((costs.crowd, costs.lone), min(MOST_AT_ONCE, max(costs.sizes)))
    if difference is None:
        log.warning("%s has no golden images: nothing proves that it answers as it was trained", location)
    opened.backend.keep(costs.arrangements)
    seconds = opened.seconds + time.monotonic() - opened_at
    return LoadedModel(location, files, opened.card, opened.backend, costs, opened.head, difference, seconds)


def _warm_up(opened: Opened, max_batch: int, progress: Progress) -> Costs:
    """Time the batch sizes; it also shows a graph that answers only the first image, and lets CUDA see every size."""
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
    sizes = _powers_of_two(backend.input.shape[0] or max_batch)
    costs = measure(run, backend.lanes, sizes, tell, linear=backend.device == "cpu")
    if largest == 1 and len(costs.sizes) > 1:
        run(costs.sizes[1], costs.crowd)
    return costs


def _powers_of_two(limit: int) -> tuple[int, ...]:
    return tuple(sorted({min(2**power, limit) for power in range(limit.bit_length() + 1)}))


def describe_failure(error: Exception) -> str:
    """Why a load failed, as one line; a failure that we did not foresee is also logged with its traceback."""
    if not isinstance(error, EXPECTED_FAILURES):
        log.error("unexpected failure while loading", exc_info=error)
    return (str(error) or type(error).__name__).splitlines()[0]
