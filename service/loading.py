"""From a model file to a loaded model that is proved and warm."""

import logging
import time
from dataclasses import dataclass

import numpy as np

from service.artifact import ArtifactError, ModelCard
from service.cam import Head
from service.costs import Arrangement, Costs, measure
from service.folder import Location
from service.golden import GoldenMismatch, images_at_once
from service.lifecycle import LOADING
from service.opening import Opener, Progress, state
from service.runtime import Backend, DeviceError
from service.watched import Fingerprint

log = logging.getLogger(__name__)

EXPECTED_FAILURES = (ArtifactError, GoldenMismatch, DeviceError, OSError)


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
    """Open one model, replay its golden images and measure what its batches cost, telling `progress` the phase.

    Beside traffic the calling thread leaves the cores to it, for good.

    Raises:
        ArtifactError, GoldenMismatch, DeviceError, OSError: why this model cannot be served.
    """
    progress(LOADING)
    files = state(location)
    backend, card, head, difference, seconds_to_open = opener.open(location, progress, beside_traffic=beside_traffic)
    opened_at = time.monotonic()
    costs = _warm_up(backend, card, backend.input.shape[0] or max_batch, progress)
    backend.keep(costs.arrangements)
    seconds = seconds_to_open + time.monotonic() - opened_at
    return LoadedModel(location, files, card, backend, costs, head, difference, seconds)


def _warm_up(backend: Backend, card: ModelCard, max_batch: int, progress: Progress) -> Costs:
    """Time the batch sizes; it also shows a graph that answers only the first image, and lets CUDA see every size."""
    tried = {images_at_once(backend, card)}

    def run(size: int, arrangement: Arrangement) -> None:
        tried.add(size)
        blank = np.zeros((size, card.input.height, card.input.width, card.input.channels), dtype=np.uint8)
        logits = backend.run(blank, arrangement=arrangement).logits
        if logits.shape != (size, len(card.labels)):
            raise ArtifactError(
                f"a batch of {size} gives logits {logits.shape} instead of ({size}, {len(card.labels)})"
            )

    def tell(*step: int) -> None:
        progress("warmup {}/{}".format(*step))

    costs = measure(run, backend.lanes, _powers_of_two(max_batch), tell, linear=backend.device == "cpu")
    if max(tried) == 1 and len(costs.sizes) > 1:
        run(costs.sizes[1], costs.crowd)
    return costs


def _powers_of_two(limit: int) -> tuple[int, ...]:
    return tuple(sorted({min(2**power, limit) for power in range(limit.bit_length() + 1)}))


def describe_failure(error: Exception) -> str:
    """Why a load failed, as one line; a failure that we did not foresee is also logged with its traceback."""
    if not isinstance(error, EXPECTED_FAILURES):
        log.error("unexpected failure while loading", exc_info=error)
    return (str(error) or type(error).__name__).splitlines()[0]
