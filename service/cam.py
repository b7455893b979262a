"""Class activation maps: where in the image the evidence for a class lies. Pure.

Zhou et al., *Learning Deep Features for Discriminative Localization* (arXiv 1512.04150). A network that ends in global
average pooling has logit_k = mean over positions of (w_k · features) + b_k. The map of class k is w_k · features at
each position, so its mean plus the bias is the logit: the explanation is the computation itself, not a guess at it.
"""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.artifact import ArtifactError, HeadRecord, StoredTensor

# How far map mean plus bias may be from the logit, relative to the largest logit, absolute where that is below 1.
TOLERANCE = 1e-3
# Dark violet, red, yellow: brighter is more, also to the colour-blind and in print.
COLD, WARM, HOT = "#0d0887", "#cc4778", "#f0f921"
OPACITY = 0.5

Features = NDArray[np.float32]
ActivationMap = NDArray[np.float64]


class Explanation(TypedDict):
    """The evidence for one class: the mean of `map` `[h, w]` plus `bias` is `logit`; `overlay` is a PNG as data URI."""

    method: Literal["cam"]
    label: str
    index: int
    logit: float
    bias: float
    map: list[list[float]]
    overlay: str


@dataclass(frozen=True)
class Head:
    """The layer after global average pooling: weight `[classes, channels]` and bias `[classes]`, float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def activation_map(self, features: Features, index: int) -> ActivationMap:
        """The map `[h, w]` of one class from features `[channels, h, w]`; in float64, so that its sum is the logit."""
        found: ActivationMap = np.tensordot(self.weight[index].astype(np.float64), features.astype(np.float64), axes=1)
        return found

    def check(self, features: Features, logits: NDArray[np.float32]) -> None:
        """Prove on features `[n, channels, h, w]` and logits `[n, classes]` that this head makes the one of the other.

        Raises:
            ArtifactError: it did not, so its maps would explain nothing.
        """
        pooled = features.astype(np.float64).mean(axis=(2, 3))  # (n, channels)
        difference = float(np.abs(pooled @ self.weight.T.astype(np.float64) + self.bias - logits).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(logits).max())):
            raise ArtifactError(f"its head does not explain its logits: they differ by {difference:.3g}")


def explain(
    head: Head, index: int, label: str, pixels: NDArray[np.uint8], features: Features, logits: NDArray[np.float32]
) -> Explanation:
    """Why an image has its logit for a class: pixels `[H, W, 3]`, features `[channels, h, w]`, logits `[classes]`."""
    activation = head.activation_map(features, index)
    png = base64.b64encode(overlay(pixels, activation)).decode("ascii")
    return Explanation(
        method="cam",
        label=label,
        index=index,
        logit=float(logits[index]),
        bias=float(head.bias[index]),
        map=activation.round(6).tolist(),
        overlay=f"data:image/png;base64,{png}",
    )


def read_head(path: Path, record: HeadRecord | None) -> Head | None:
    """The head's tensors from the artifact's own file; None where the card has no head.

    Raises:
        ArtifactError: the file is too short for them.
    """
    if record is None:
        return None
    return Head(_read(path, record.weight), _read(path, record.bias))


def _read(path: Path, stored: StoredTensor) -> NDArray[np.float32]:
    count = int(np.prod(stored.shape))
    values = np.fromfile(path, dtype="<f4", count=count, offset=stored.offset)
    if len(values) != count:
        raise ArtifactError(f"its head lies beyond the end of {path}")
    return values.reshape(stored.shape)


def overlay(pixels: NDArray[np.uint8], activation: ActivationMap) -> bytes:
    """A PNG of the pixels `[H, W, 3]` under the map `[h, w]`: enlarged bicubically, the largest value brightest."""
    span = float(np.ptp(activation))
    scaled = (activation - activation.min()) / span if span else np.zeros_like(activation)
    size = pixels.shape[1], pixels.shape[0]
    grey = Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    levels = Image.fromarray((np.asarray(grey).clip(0, 1) * 255).round().astype(np.uint8))
    heat = ImageOps.colorize(levels, black=COLD, mid=WARM, white=HOT)
    buffer = BytesIO()
    Image.blend(Image.fromarray(pixels), heat, OPACITY).save(buffer, format="PNG")
    return buffer.getvalue()
