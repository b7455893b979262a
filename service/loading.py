"""From the folder of models, `models/<name>/<version>/model.onnx`, to loaded models that are proved and warm."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.artifact import ArtifactError, ModelCard, read_card
from service.cam import Head, read_head
from service.costs import Arrangement, Costs, measure
from service.cpus import yield_to_others
from service.external_data import refuse_other_files
from service.golden import GoldenMismatch, replay
from service.lifecycle import LOADING
from service.plain import CONFIG_NAME, NormalisingBackend, card_from_config, refuse_normalisation
from service.runtime import Backend, DeviceError, OpenBackend
from service.seal import unsealed_card
from service.signatures import Signers

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
# As the exporter writes it: 01 beside 1 would be the same version twice.
_VERSION = re.compile("[1-9][0-9]{0,8}")
Progress = Callable[[str], None]
EXPECTED_FAILURES = (ArtifactError, GoldenMismatch, DeviceError, OSError)


class RepositoryError(Exception):
    """There is nothing to serve. The message is one line that says what to do."""


@dataclass(frozen=True, order=True)
class Location:
    """One version of one model on disk."""

    name: str
    version: int
    path: Path

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@dataclass(frozen=True)
class LoadedModel:
    """A model that passed its golden replay and its warm-up."""

    location: Location
    card: ModelCard
    backend: Backend
    costs: Costs
    head: Head | None
    golden_max_abs_diff: float | None
    seconds: float


def discover(folder: Path) -> list[Location]:
    """Every model file under `folder`, by name and version; entries that do not fit the layout are ignored.

    Raises:
        RepositoryError: the folder is missing or holds no model.
    """
    paths = folder.glob(f"*/*/{MODEL_FILE}")
    found = [
        Location(path.parent.parent.name, int(path.parent.name), path)
        for path in paths
        if _VERSION.fullmatch(path.parent.name) and not path.parent.parent.name.startswith(".")
    ]
    if not found:
        raise RepositoryError(
            f"no model in {folder}/<name>/<version>/{MODEL_FILE}: "
            f"run `resnet-export convert SOURCE --name NAME --out {folder}` first"
        )
    return sorted(found)


def load(
    location: Location,
    open_backend: OpenBackend,
    max_batch: int,
    progress: Progress,
    *,
    signers: Signers | None = None,
    beside_traffic: bool = False,
) -> LoadedModel:
    """Open one model, replay its golden images and measure what its batches cost, telling `progress` the phase.

    With `signers`, one of them must have signed the file.

    Beside traffic the calling thread leaves the cores to it, for good. That is not so while the session is built: the
    threads that it starts would inherit it.

    Raises:
        ArtifactError, GoldenMismatch, DeviceError, OSError: why this model cannot be served.
    """
    started = time.monotonic()
    progress(LOADING)
    backend, card = _open(location, open_backend, signers)
    if beside_traffic:
        yield_to_others()
    _check_shapes(backend, card)
    progress("golden")
    head = read_head(location.path, card.head)
    difference = replay(backend, card, head)
    if difference is None:
        log.warning("%s has no golden images: nothing proves that it answers as it was trained", location)
    costs = _warm_up(backend, card, backend.input.shape[0] or max_batch, progress)
    backend.keep(costs.arrangements)
    return LoadedModel(location, card, backend, costs, head, difference, time.monotonic() - started)


def _open(location: Location, open_backend: OpenBackend, signers: Signers | None) -> tuple[Backend, ModelCard]:
    if signers is not None:
        signers.check(location.path)
    sealed = unsealed_card(location.path)
    if signers is not None or (sealed is not None and sealed.seal is not None):
        refuse_other_files(location.path)
    backend = open_backend(location.path)
    card = read_card(backend.metadata)
    if sealed is not None and card != sealed:
        raise ArtifactError("it has two cards: convert it again")
    if card is None:
        card = card_from_config(location.path.parent.parent / CONFIG_NAME, location.name)
        if backend.input.dtype == "tensor(uint8)":
            return backend, refuse_normalisation(card)
        return NormalisingBackend(backend, card.preprocessing), card
    if card.seal is None:
        log.warning("%s has no seal: a byte that was changed in it goes unnoticed", location)
    return backend, card


def _check_shapes(backend: Backend, card: ModelCard) -> None:
    batch, *image = backend.input.shape
    expected = [card.input.height, card.input.width, card.input.channels]
    if backend.input.dtype != "tensor(uint8)" or image != expected or batch not in (None, 1):
        raise ArtifactError(
            f"the graph takes {backend.input.dtype} {list(backend.input.shape)}, "
            f"but its card says uint8 [batch, {', '.join(map(str, expected))}]"
        )
    classes = backend.output.shape[-1]
    if classes not in (None, len(card.labels)):
        raise ArtifactError(f"the graph gives {classes} classes, but there are {len(card.labels)} labels")


def _warm_up(backend: Backend, card: ModelCard, max_batch: int, progress: Progress) -> Costs:
    """Time the batch sizes; it also shows a graph that answers only the first image, and lets CUDA see every size."""

    def run(size: int, arrangement: Arrangement) -> None:
        blank = np.zeros((size, card.input.height, card.input.width, card.input.channels), dtype=np.uint8)
        logits = backend.run(blank, arrangement=arrangement).logits
        if logits.shape != (size, len(card.labels)):
            raise ArtifactError(
                f"a batch of {size} gives logits {logits.shape} instead of ({size}, {len(card.labels)})"
            )

    return measure(run, backend.lanes, _powers_of_two(max_batch), lambda *step: progress("warmup {}/{}".format(*step)))


def _powers_of_two(limit: int) -> tuple[int, ...]:
    return tuple(sorted({min(2**power, limit) for power in range(limit.bit_length() + 1)}))


def describe_failure(error: Exception) -> str:
    """Why a load failed, as one line; a failure that we did not foresee is also logged with its traceback."""
    if not isinstance(error, EXPECTED_FAILURES):
        log.error("unexpected failure while loading", exc_info=error)
    return (str(error) or type(error).__name__).splitlines()[0]
