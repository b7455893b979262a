"""From a model file to a session and a card: what has to be checked is checked before onnxruntime reads the file."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from service.artifact import ArtifactError, ModelCard, read_card
from service.cpus import available_cpus
from service.external_data import refuse_other_files
from service.folder import Location, RepositoryError, discover
from service.plain import CONFIG_NAME, NormalisingBackend, card_from_config, refuse_normalisation
from service.runtime import Backend, OpenBackend, open_onnx
from service.seal import unsealed_card
from service.settings import Settings
from service.signatures import Signers
from service.watched import Fingerprint, fingerprint

log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A model that can be run, not yet proved, and how long it took to open."""

    backend: Backend
    card: ModelCard
    seconds: float


class Opener:
    """Opens model files, and the first one ahead of time."""

    def __init__(self, open_backend: OpenBackend, signers: Signers | None = None) -> None:
        """With `signers`, one of them must have signed each file."""
        self._open_backend = open_backend
        self._signers = signers
        self._ahead: dict[Location, tuple[Fingerprint, Future[Opened]]] = {}

    def begin(self, folder: Path) -> None:
        """Open the first model of a folder, if there is one, on a thread of its own; `open` then takes it."""
        try:
            first = discover(folder)[0]
        except RepositoryError:
            return
        thread = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._ahead[first] = state(first), thread.submit(self._open, first)
        thread.shutdown(wait=False)

    def open(self, location: Location) -> Opened:
        """Open a model file, or take the one that was opened ahead if it has not changed since.

        Raises:
            ArtifactError, DeviceError, OSError: why it cannot be served.
        """
        before, opened = self._ahead.pop(location, (None, None))
        if opened is not None and before == state(location):
            return opened.result()
        return self._open(location)

    def _open(self, location: Location) -> Opened:
        started = time.monotonic()
        path = location.path
        if self._signers is not None:
            self._signers.check(path)
        sealed = unsealed_card(path)
        if self._signers is not None or (sealed is not None and sealed.seal is not None):
            refuse_other_files(path)
        backend = self._open_backend(path)
        card = read_card(backend.metadata)
        if sealed is not None and card != sealed:
            raise ArtifactError("it has two cards: convert it again")
        if card is None:
            backend, card = _with_config(backend, location)
        elif card.seal is None:
            log.warning("%s has no seal: a byte that was changed in it goes unnoticed", location)
        return Opened(backend, card, time.monotonic() - started)


def opener_for(settings: Settings) -> Opener:
    """What opens models as the settings say: on their device, and only of their signers.

    Raises:
        SignersError: the trusted signers cannot be read.
    """
    threads = settings.threads or available_cpus()
    signers = Signers(settings.model_signers) if settings.model_signers else None
    return Opener(partial(open_onnx, device=settings.device, threads=threads, spread=True), signers)


def state(location: Location) -> Fingerprint:
    """What differs once the files that make a model have changed."""
    return fingerprint((location.path, location.path.parent.parent / CONFIG_NAME))


def _with_config(backend: Backend, location: Location) -> tuple[Backend, ModelCard]:
    """A graph without a card: `config.json` stands in for it."""
    card = card_from_config(location.path.parent.parent / CONFIG_NAME, location.name)
    if backend.input.dtype == "tensor(uint8)":
        return backend, refuse_normalisation(card)
    return NormalisingBackend(backend, card.preprocessing), card
