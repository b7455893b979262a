"""torch against onnxruntime: the verdict, not a print, decides whether a file is written.

The reference is torch in float32 and normalises by the textbook formula outside the graph, so a fault in the graph's
own arithmetic shows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm import tqdm

from model_export.errors import ExportError
from model_export.images import Pixels
from service.artifact import ArtifactError, Parity, Precision, Preprocessing
from service.cpus import available_cpus
from service.runtime import Backend, open_onnx

BATCH_SIZES = (1, 2, 7, 32)
SMALLEST = 2.0**-126
REFERENCE_BATCH = 8
# A bar for the reference where it takes longer than a person waits without asking.
SLOW_REFERENCE = 64
# Small batches show a graph that depends on the batch; that needs few images. The largest batch sees all of them.
IMAGES_PER_SIZE = {1: 4, 2: 4, 7: 7}
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Standard:
    """What an artifact must reach: difference relative to the largest logit (None: any), and top-1 agreement."""

    tolerance: float | None
    min_agreement: float


# fp32: sums in another order stay well below. fp16: 2⁻¹¹ a rounding, and deep networks add them up to a few 10⁻³.
# int8 differs by what it saves; how often the answer changes is what counts, and the artifact states its difference.
FLOAT32_TOLERANCE = 1e-4
FLOAT16_TOLERANCE = 1e-2
FLOAT32 = Standard(FLOAT32_TOLERANCE, 1.0)
# An int8 artifact is replayed on other processors, whose sums saturate and round differently, so its own difference
# is stated with room.
INT8_ROOM = 2.0
INT8_LEAST_TOLERANCE = 0.05
# Further away than this it computes something else, whatever its top-1 classes are.
INT8_MOST = 0.5


def standard_of(precision: Precision, min_agreement: float) -> Standard:
    """What is asked of an artifact of this precision; `min_agreement` in [0, 1] applies below float32."""
    if precision == "fp16":
        return Standard(FLOAT16_TOLERANCE, min_agreement)
    return Standard(None, min_agreement) if precision == "int8" else FLOAT32


def reference_logits(network: nn.Module, recipe: Preprocessing, pixels: Pixels) -> Logits:
    """What the trained torch model answers to pixels `[n, H, W, 3]`: float32 logits `[n, classes]`.

    A network for grey images gets them as Pillow converts them.
    """
    in_channels = next(network.parameters()).shape[1]
    mean = torch.tensor(recipe.mean[:in_channels]).reshape(1, -1, 1, 1)
    std = torch.tensor(recipe.std[:in_channels]).reshape(1, -1, 1, 1)
    # A few at a time: the activations of a deep network at 224 × 224 take a gigabyte for 32 images.
    starts = range(0, len(pixels), REFERENCE_BATCH)
    parts = (pixels[start : start + REFERENCE_BATCH] for start in starts)
    progress = tqdm(parts, "torch", len(starts), unit="batch", disable=len(pixels) < SLOW_REFERENCE, leave=False)
    with torch.inference_mode():
        logits = [network((_scaled(part, in_channels) - mean) / std) for part in progress]
    reference: Logits = torch.cat(logits).numpy()
    return reference


def _scaled(pixels: Pixels, in_channels: int) -> torch.Tensor:
    """Pixels `[n, H, W, 3]` -> `[n, in_channels, H, W]` in [0, 1]."""
    if in_channels == 1:
        grey = np.stack([np.asarray(Image.fromarray(each).convert("L")) for each in pixels])
        return torch.tensor(grey).unsqueeze(1).float() / 255
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255


def judge(model: Path, expected: Logits, pixels: Pixels, standard: Standard = FLOAT32) -> Parity:
    """Run an ONNX file on pixels `[n, H, W, 3]` at every batch size and compare with the expected logits.

    Raises:
        ExportError: it does not run, or misses the standard, with the numbers.
    """
    verdict = compare(model, expected, pixels, standard)
    most = INT8_MOST if standard.tolerance is None else standard.tolerance
    if not verdict.max_rel_diff <= most or not verdict.top1_agreement >= standard.min_agreement:
        raise ExportError(
            f"parity failed: logits differ by {verdict.max_rel_diff:.3g} of the largest where {most:.3g} is allowed, "
            f"top-1 agreement {verdict.top1_agreement:.1%} of {verdict.images} images where "
            f"{standard.min_agreement:.1%} is asked for; nothing was written"
        )
    return verdict


def compare(model: Path, expected: Logits, pixels: Pixels, standard: Standard) -> Parity:
    """The figures of a verdict without its consequence.

    Raises:
        ExportError: the file does not run, gives no number, or answers by the size of its batch.
    """
    try:
        backend = open_onnx(model, "cpu", available_cpus())
    except ArtifactError as error:
        raise ExportError(f"{model} cannot be compared: {error}") from error
    got = {size: _run(backend, pixels, size) for size in BATCH_SIZES}
    scale = max(float(np.abs(expected).max()), SMALLEST)
    every = got[max(BATCH_SIZES)]
    if max(float(np.abs(each - every[: len(each)]).max()) for each in got.values()) > FLOAT16_TOLERANCE * scale:
        raise ExportError("parity failed: the same image gets other logits in a batch of another size")
    largest = max(float(np.abs(each - expected[: len(each)]).max()) for each in got.values())
    return Parity(
        tolerance=standard.tolerance or max(INT8_LEAST_TOLERANCE, INT8_ROOM * largest / scale),
        max_abs_diff=largest,
        max_rel_diff=largest / scale,
        kl_divergence=kl_divergence(expected, every),
        top1_agreement=agreement(expected, every),
        min_agreement=standard.min_agreement,
        batch_sizes=BATCH_SIZES,
        images=len(pixels),
    )


def agreement(expected: Logits, got: Logits) -> float:
    """The share of images `[n, classes]` with the same top-1 class, counting classes that float32 cannot tell apart."""
    rows = np.arange(len(got))
    ties = 2 * FLOAT32_TOLERANCE * np.abs(expected).max(axis=1)
    return float(np.mean(expected[rows, got.argmax(axis=1)] >= expected.max(axis=1) - ties))


def kl_divergence(expected: Logits, got: Logits) -> float:
    """Mean over the images `[n, classes]` of KL(expected ‖ got) of their softmax, in nats."""
    p, q = (torch.log_softmax(torch.from_numpy(each).double(), dim=1) for each in (expected, got))
    return max(0.0, float((p.exp() * (p - q)).sum(dim=1).mean()))


def _run(backend: Backend, pixels: Pixels, size: int) -> Logits:
    count = min(len(pixels), IMAGES_PER_SIZE.get(size, len(pixels)))
    batches = [pixels[start : start + size] for start in range(0, count, size)]
    try:
        logits = np.concatenate([backend.run(batch).logits for batch in batches])
    except Exception as error:  # onnxruntime's own classes
        raise ExportError(f"the graph does not run at batch {size}: {str(error).splitlines()[0]}") from error
    if not np.isfinite(logits).all():
        raise ExportError(
            f"parity failed: {(~np.isfinite(logits)).any(axis=1).sum()} images get NaN or infinite logits"
        )
    return logits
