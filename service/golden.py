"""Golden replay: the proof, on this machine and this device, that what is served is what was trained.

The card carries a few encoded images with the trained torch model's logits. Each is decoded, preprocessed and run as a
request would be; the pixels must be equal and the logits within the tolerance that the export stated.
"""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from service.artifact import ArtifactError, Golden, ModelCard
from service.cam import Head
from service.costs import Arrangement
from service.errors import ServiceError
from service.image import preprocess
from service.runtime import Backend, DeviceLost, OutOfDeviceMemory
from service.tickets import Features, Logits

# Golden images are our own, so only the size of the format limits them.
MAX_GOLDEN_PIXELS = 2**26
# Two show a graph that answers only the first of a batch; onnxruntime would keep the memory of more for good.
MOST_AT_ONCE = 2


class GoldenMismatch(Exception):
    """The model does not answer as it did in torch. The message names the stage that differs: pixels or logits."""


class Replay:
    """A card's golden images, run in any batches, all of which are compared; a blank image for a card without.

    So what is run to time a model proves it as well: in each arrangement and each batch size that is timed.
    """

    def __init__(self, backend: Backend, card: ModelCard, head: Head | None = None) -> None:
        """Raises GoldenMismatch: other pixels than those that the export made of the images."""
        self._backend = backend
        self._card = card
        self._head = head
        golden = golden_pixels(card) if card.parity else []
        self._known = bool(golden)
        blank = np.zeros(card.input.shape, dtype=np.uint8)
        self._images = np.stack(golden or [blank])  # (images, H, W, 3) uint8
        self._expected = np.array([each.logits for each in card.golden], dtype=np.float32)  # (images, classes)
        self._next = 0
        self._lock = threading.Lock()
        self._proved: dict[Arrangement, set[int]] = defaultdict(set)
        self._differences: list[np.floating] = []
        self._explained: list[tuple[Logits, Features]] = []

    def run(self, count: int, arrangement: Arrangement = "together") -> None:
        """Run a batch of the next images, over and over; several threads may.

        Raises:
            ArtifactError: it cannot run them, or gives other than a row of logits for each image.
        """
        with self._lock:
            first, self._next = self._next, self._next + count
        which = np.arange(first, first + count) % len(self._images)
        self._run(which, arrangement, explained=first < len(self._images))

    def finish(self, arrangements: Sequence[Arrangement] = ("together",), at_once: int = MOST_AT_ONCE) -> float | None:
        """Run the golden images that none of these arrangements has run, so many at once in the first of them.

        Returns:
            The largest absolute difference of a logit in any run; None for a card without golden images.

        Raises:
            GoldenMismatch: logits further away than the tolerance.
            ArtifactError: the head is not what makes the logits out of the features; or as in `run`.
        """
        if not self._known or self._card.parity is None:
            return None
        proved = set[int]().union(*(self._proved[each] for each in arrangements))
        missing = [each for each in range(len(self._images)) if each not in proved]
        at_once = min(at_once, self._backend.input.shape[0] or at_once)
        for start in range(0, len(missing), at_once):
            self._run(np.array(missing[start : start + at_once]), arrangements[0], explained=True)
        difference = float(np.max(self._differences))  # NaN if one of them is
        allowed = self._card.parity.allowed(self._expected)
        if not difference <= allowed:  # also true for NaN
            raise GoldenMismatch(
                f"golden logits differ by {difference:.3g}, more than {allowed:.3g}: "
                f"the weights or the device do not compute what the trained model did{_hint(self._card)}"
            )
        if self._head is not None:
            logits, features = (np.concatenate(each) for each in zip(*self._explained, strict=True))
            self._head.check(features, logits)
        return difference

    def _run(self, which: np.ndarray, arrangement: Arrangement, *, explained: bool) -> None:
        features = explained and self._head is not None
        try:
            outputs = self._backend.run(self._images[which], features=features, arrangement=arrangement)
        except (OutOfDeviceMemory, DeviceLost):
            raise
        except Exception as error:  # onnxruntime raises classes of its own and RuntimeError alike
            reason = str(error).partition("\n")[0]
            raise ArtifactError(f"it cannot run a batch of {len(which)}: {reason}") from error
        expected = (len(which), len(self._card.labels))
        if outputs.logits.shape != expected:
            raise ArtifactError(f"a batch of {len(which)} gives logits {outputs.logits.shape} instead of {expected}")
        if not self._known:
            return
        difference = np.abs(outputs.logits - self._expected[which]).max()
        with self._lock:
            self._proved[arrangement].update(which.tolist())
            self._differences.append(difference)
            if outputs.features is not None:  # copied, as onnxruntime would keep the memory of what is kept for good
                self._explained.append((outputs.logits.copy(), outputs.features.copy()))


def golden_pixels(card: ModelCard) -> list[np.ndarray]:
    """The golden images, decoded and preprocessed: uint8 `[height, width, 3]` each.

    Raises:
        GoldenMismatch: other pixels than those that the export made of them.
    """
    return [_pixels(golden, position, card) for position, golden in enumerate(card.golden)]


def _hint(card: ModelCard) -> str:
    # Without VNNI, x86 sums pairs of uint8 × int8 products in 16 bits, which 8-bit weights overflow.
    if card.quantisation and card.quantisation.target == "cpu":
        return "; on a CPU without VNNI, convert with --int8-target cpu-avx2"
    return ""


def _pixels(golden: Golden, position: int, card: ModelCard) -> np.ndarray:
    try:
        pixels = preprocess(golden.encoded, card.preprocessing, MAX_GOLDEN_PIXELS)
    except (ServiceError, ValueError) as error:
        raise GoldenMismatch(f"golden image {position} cannot be decoded: {error}") from error
    if hashlib.sha256(pixels.tobytes()).hexdigest() != golden.pixels_sha256:
        raise GoldenMismatch(
            f"golden pixels differ for image {position}: the preprocessing is not the one the model was exported with"
        )
    return pixels
