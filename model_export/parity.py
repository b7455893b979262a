"""torch against onnxruntime: the verdict, not a print, decides whether a file is written.

The reference normalises by the textbook formula outside the graph, so a fault in the graph's own arithmetic shows.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from model_export.errors import ExportError
from model_export.images import Pixels
from service.artifact import ArtifactError, Parity, Preprocessing
from service.cpus import available_cpus
from service.runtime import Backend, open_onnx

# Largest difference of a logit, relative to the largest logit: float32 sums in another order stay well below.
TOLERANCE = 1e-4
BATCH_SIZES = (1, 2, 7, 32)
REFERENCE_BATCH = 8
IMAGES = max(BATCH_SIZES)
MAX_IMAGES_PER_SIZE = {1: 4, 2: 4}
Logits = NDArray[np.float32]


def reference_logits(network: nn.Module, recipe: Preprocessing, pixels: Pixels) -> Logits:
    """What the trained torch model answers to pixels `[n, H, W, 3]`: float32 logits `[n, classes]`.

    A network for grey images gets them as Pillow converts them.
    """
    in_channels = next(network.parameters()).shape[1]
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255  # (n, 3, H, W) in [0, 1]
    if in_channels == 1:
        images = torch.stack([_grey(each) for each in pixels])  # (n, 1, H, W)
    mean = torch.tensor(recipe.mean[:in_channels]).reshape(1, -1, 1, 1)
    std = torch.tensor(recipe.std[:in_channels]).reshape(1, -1, 1, 1)
    with torch.inference_mode():
        # A few at a time: the activations of a deep network at 224 × 224 take a gigabyte for 32 images.
        logits = [network((part - mean) / std) for part in images.split(REFERENCE_BATCH)]  # type: ignore[no-untyped-call]
    reference: Logits = torch.cat(logits).numpy()
    return reference


def _grey(pixels: Pixels) -> torch.Tensor:
    return torch.tensor(np.asarray(Image.fromarray(pixels).convert("L"))).unsqueeze(0).float() / 255


def judge(model: Path, expected: Logits, pixels: Pixels) -> Parity:
    """Run an ONNX file on pixels `[n, H, W, 3]` at every batch size and compare with the expected logits.

    Raises:
        ExportError: it does not run, or differs by more than the tolerance, with the numbers.
    """
    try:
        backend = open_onnx(model, "cpu", available_cpus())
    except ArtifactError as error:
        raise ExportError(f"{model} cannot be compared: {error}") from error
    verdict = Parity(
        tolerance=TOLERANCE,
        max_abs_diff=0.0,
        max_rel_diff=0.0,
        top1_agreement=1.0,
        batch_sizes=BATCH_SIZES,
        images=len(pixels),
    )
    allowed = verdict.allowed(expected)
    got = [_run(backend, pixels, size) for size in BATCH_SIZES]
    largest = max(float(np.abs(each - expected[: len(each)]).max()) for each in got)
    agreed = [
        _agrees(logits, reference, allowed) for each in got for logits, reference in zip(each, expected, strict=False)
    ]
    verdict = verdict.model_copy(
        update={
            "max_abs_diff": largest,
            "max_rel_diff": largest / max(float(np.abs(expected).max()), 1e-12),
            "top1_agreement": float(np.mean(agreed)),
        }
    )
    if not largest <= allowed or not all(agreed):
        raise ExportError(
            f"parity failed: logits differ by {largest:.3g} where {allowed:.3g} is allowed, "
            f"top-1 agreement {verdict.top1_agreement:.1%}; nothing was written"
        )
    return verdict


def _run(backend: Backend, pixels: Pixels, size: int) -> Logits:
    count = min(len(pixels), MAX_IMAGES_PER_SIZE.get(size, size))
    batches = [pixels[start : start + size] for start in range(0, count, size)]
    try:
        return np.concatenate([backend.run(batch) for batch in batches])
    except Exception as error:  # onnxruntime's own classes
        raise ExportError(f"the graph does not run at batch {size}: {str(error).splitlines()[0]}") from error


def _agrees(logits: Logits, reference: Logits, allowed: float) -> bool:
    # Two classes closer together than the tolerance may change places.
    return bool(reference[logits.argmax()] >= reference.max() - 2 * allowed)
