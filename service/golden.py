"""Golden replay: the proof, on this machine and this device, that what is served is what was trained.

The card carries a few encoded images with the trained torch model's logits. Each is decoded, preprocessed and run as a
request would be; the pixels must be equal and the logits within the tolerance that the export stated.
"""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from service.artifact import Golden, ModelCard
from service.cam import Head
from service.costs import Arrangement
from service.errors import ServiceError
from service.image import preprocess
from service.runtime import Backend, Outputs

# Golden images are our own, so only the size of the format limits them.
MAX_GOLDEN_PIXELS = 2**26
# Two show a graph that answers only the first of a batch; onnxruntime would keep the memory of more for good.
MOST_AT_ONCE = 2


class GoldenMismatch(Exception):
    """The model does not answer as it did in torch. The message names the stage that differs: pixels or logits."""


def replay(backend: Backend, card: ModelCard, head: Head | None = None) -> float | None:
    """Run a card's golden images; the largest absolute difference of a logit, None for a card without golden images.

    The first arrangement of the cores runs all of them. Another one, which runs the same file and differs in the number
    of threads, runs one for each lane. Lanes run side by side, as they will under load, in batches of a few images.

    Raises:
        GoldenMismatch: other pixels, or logits further away than the tolerance.
        ArtifactError: `head` is not what makes the logits out of the features.
    """
    if not card.golden or not card.parity:
        return None
    pixels = np.stack(golden_pixels(card))  # (n, H, W, 3) uint8
    expected = np.array([golden.logits for golden in card.golden], dtype=np.float32)  # (n, classes)
    runs: list[Outputs] = []
    for arrangement, lanes in backend.lanes.items():
        count = lanes if runs else len(pixels)
        runs.append(_run_on(backend, arrangement, lanes, pixels[-count:], features=head is not None))
    differences = [np.abs(run.logits - expected[-len(run.logits) :]).max() for run in runs]
    difference = float(np.max(differences))  # NaN if one of them is
    allowed = card.parity.allowed(expected)
    if not difference <= allowed:  # also true for NaN
        raise GoldenMismatch(
            f"golden logits differ by {difference:.3g}, more than {allowed:.3g}: "
            f"the weights or the device do not compute what the trained model did{_hint(card)}"
        )
    for run in runs:
        if head is not None and run.features is not None:
            head.check(run.features, run.logits)
    return difference


def golden_pixels(card: ModelCard) -> list[np.ndarray]:
    """The golden images, decoded and preprocessed: uint8 `[height, width, 3]` each.

    Raises:
        GoldenMismatch: other pixels than those that the export made of them.
    """
    return [_pixels(golden, position, card) for position, golden in enumerate(card.golden)]


def images_at_once(backend: Backend, card: ModelCard) -> int:
    """How many golden images one run of the replay had, at most; 0 of a card without any."""
    images = len(card.golden)
    return math.ceil(images / _runs(images, next(iter(backend.lanes.values()))))


def _runs(images: int, lanes: int) -> int:
    return max(1, math.ceil(images / MOST_AT_ONCE), min(images, lanes))


def _run_on(backend: Backend, arrangement: Arrangement, lanes: int, pixels: np.ndarray, *, features: bool) -> Outputs:
    batches = np.array_split(pixels, _runs(len(pixels), lanes))
    with ThreadPoolExecutor(lanes, thread_name_prefix="golden") as pool:
        runs = list(pool.map(partial(backend.run, features=features, arrangement=arrangement), batches))
    maps = [run.features for run in runs if run.features is not None]
    return Outputs(np.concatenate([run.logits for run in runs]), np.concatenate(maps) if maps else None)


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
