"""From a model file to a model that is to be proved: its session, its card, its golden images as pixels.

What can be checked of the file is checked before onnxruntime reads it.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from service.artifact import ArtifactError, ModelCard, parse_card, read_card
from service.cam import Head, read_head
from service.cpus import available_cpus, yield_to_others
from service.external_data import refuse_other_files
from service.folder import Location, RepositoryError, discover
from service.golden import Replay
from service.plain import CONFIG_NAME, NormalisingBackend, card_from_config, refuse_normalisation
from service.runtime import Backend, OpenBackend, open_onnx
from service.seal import find_card, unsealed_card
from service.settings import Settings
from service.signatures import Signers
from service.tensorrt import engine_options
from service.watched import Fingerprint, fingerprint

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
GOLDEN = "golden"


class Opened(NamedTuple):
    """A model whose `replay` is to show that it answers as it was trained, and how long it took to open it.

    `head` is what explains its answers, where it has one.
    """

    backend: Backend
    card: ModelCard
    head: Head | None
    replay: Replay
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

    def open(self, location: Location, progress: Progress = lambda _: None, *, beside_traffic: bool = False) -> Opened:
        """Open a model file, or take the model that was opened ahead if its file has not changed since.

        Beside traffic the calling thread leaves the cores to it, for good. That is not so while the session is built:
        the threads that it starts would inherit it.

        Raises:
            ArtifactError, GoldenMismatch, DeviceError, OSError: why it cannot be served.
        """
        before, opened = self._ahead.pop(location, (None, None))
        if opened is not None and before == state(location):
            progress(GOLDEN)
            if beside_traffic:
                yield_to_others()
            return opened.result()
        return self._open(location, progress, beside_traffic=beside_traffic)

    def _open(self, location: Location, progress: Progress = lambda _: None, *, beside_traffic: bool = False) -> Opened:
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
        if beside_traffic:
            yield_to_others()
        _check_shapes(backend, card)
        progress(GOLDEN)
        head = read_head(path, card.head)
        return Opened(backend, card, head, Replay(backend, card, head), time.monotonic() - started)


def opener_for(settings: Settings) -> Opener:
    """What opens models as the settings say: on their device, and only of their signers.

    Raises:
        SignersError: the trusted signers cannot be read.
    """
    threads = settings.threads or available_cpus()
    signers = Signers(settings.model_signers) if settings.model_signers else None

    def open_backend(path: Path) -> Backend:
        on_tensorrt = settings.device == "tensorrt"
        options = engine_options(path, settings.max_batch_size, settings.tensorrt_cache) if on_tensorrt else None
        return open_onnx(path, settings.device, threads, spread=True, options=options)

    return Opener(open_backend, signers)


def card_of(location: Location) -> ModelCard:
    """The card of a model that is proved already.

    Raises:
        ArtifactError, OSError: there is none, or it cannot be read.
    """
    found = find_card(location.path)
    return parse_card(found.text) if found else _config_card(location)


def state(location: Location) -> Fingerprint:
    """What differs once the files that make a model have changed."""
    return fingerprint((location.path, location.path.parent.parent / CONFIG_NAME))


def _with_config(backend: Backend, location: Location) -> tuple[Backend, ModelCard]:
    """A graph without a card: `config.json` stands in for it."""
    card = _config_card(location)
    if backend.input.dtype == "tensor(uint8)":
        return backend, refuse_normalisation(card)
    return NormalisingBackend(backend, card.preprocessing), card


def _config_card(location: Location) -> ModelCard:
    return card_from_config(location.path.parent.parent / CONFIG_NAME, location.name)


def _check_shapes(backend: Backend, card: ModelCard) -> None:
    batch, *image = backend.input.shape
    expected = list(card.input.shape)
    if backend.input.dtype != "tensor(uint8)" or image != expected or batch not in (None, 1):
        raise ArtifactError(
            f"the graph takes {backend.input.dtype} {list(backend.input.shape)}, "
            f"but its card says uint8 [batch, {', '.join(map(str, expected))}]"
        )
    if len(backend.output.shape) != 2:
        given = list(backend.output.shape)
        raise ArtifactError(f"the graph gives {given} instead of logits [batch, {len(card.labels)}]")
    classes = backend.output.shape[-1]
    if classes not in (None, len(card.labels)):
        raise ArtifactError(f"the graph gives {classes} classes, but there are {len(card.labels)} labels")
