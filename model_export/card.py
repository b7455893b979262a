"""The model card of a conversion, and the golden images in it."""

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from typing import Literal, get_args

import numpy as np
from PIL import Image
from torch import nn

from model_export.checkpoints import Checkpoint
from model_export.describe import Task
from model_export.graph import OPSET
from model_export.images import EncodedImage, Pixels, colour_chart, shipped_images, to_pixels
from model_export.parity import Logits, reference_logits
from model_export.structure import structure_of
from service.artifact import (
    Accuracy,
    ExportRecord,
    Golden,
    InputSpec,
    MediaType,
    ModelCard,
    Parity,
    Preprocessing,
    Quantisation,
)

GOLDEN_IMAGES = 8
# Golden images travel in the card of every artifact, so larger photographs are taken at a smaller size.
MAX_GOLDEN_BYTES = 2**18
GOLDEN_SIDE = 640
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "pillow")


@dataclass(frozen=True)
class Findings:
    """What a conversion found out about its graph."""

    precision: Literal["fp32", "fp16", "int8"]
    parity: Parity
    accuracy: Accuracy | None
    quantisation: Quantisation | None
    golden: tuple[Golden, ...]


def make_card(name: str, checkpoint: Checkpoint, findings: Findings) -> ModelCard:
    """All that is known of a conversion, for its artifact."""
    crop = checkpoint.preprocessing.crop
    return ModelCard(
        name=name,
        architecture=checkpoint.architecture.name,
        input=InputSpec(height=crop, width=crop),
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        precision=findings.precision,
        source=checkpoint.source,
        export=ExportRecord(
            versions={library: version(library) for library in LIBRARIES},
            opset=OPSET,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        parity=findings.parity,
        accuracy=findings.accuracy,
        quantisation=findings.quantisation,
        structure=structure_of(checkpoint.architecture, Task(len(checkpoint.labels), crop, checkpoint.in_channels)),
        golden=findings.golden,
    )


def golden_images(
    real: list[EncodedImage], network: nn.Module, recipe: Preprocessing
) -> tuple[tuple[Golden, ...], Pixels, Logits]:
    """A colour chart and seven real images (or shipped digits), JPEG and PNG among them, with torch's logits for each.

    Returns:
        The records, and what they stand for: pixels `[n, H, W, 3]` and float32 logits `[n, classes]`.
    """
    images = _of_both_kinds([_compact(image) for image in real])
    pixels = np.stack([to_pixels(image, recipe) for image in images])
    logits = reference_logits(network, recipe, pixels)
    golden = (_golden(*each) for each in zip(images, pixels, logits, strict=True))
    return tuple(golden), pixels, logits


def _of_both_kinds(real: list[EncodedImage]) -> list[EncodedImage]:
    """The chart, which is PNG, six of the real images, and one of the other kind than the sixth where there is one."""
    images = [*real, *shipped_images()]
    first, rest = images[: GOLDEN_IMAGES - 2], images[GOLDEN_IMAGES - 2 :]
    jpeg = [image for image in rest if image.media_type == "image/jpeg"]
    missing = all(image.media_type == "image/png" for image in first)
    return [colour_chart(), *first, *(jpeg if missing and jpeg else rest)[:1]]


def _compact(image: EncodedImage) -> EncodedImage:
    """The image itself if the card can hold it; else a JPEG of it, whose pixels are then the golden ones."""
    if image.media_type in get_args(MediaType) and len(image.encoded) <= MAX_GOLDEN_BYTES:
        return image
    buffer = BytesIO()
    with Image.open(BytesIO(image.encoded)) as picture:
        smaller = picture.convert("RGB")
    smaller.thumbnail((GOLDEN_SIDE, GOLDEN_SIDE))
    smaller.save(buffer, format="JPEG", quality=85)
    return EncodedImage("image/jpeg", buffer.getvalue(), image.name)


def _golden(image: EncodedImage, pixels: Pixels, logits: Logits) -> Golden:
    return Golden(
        media_type="image/jpeg" if image.media_type == "image/jpeg" else "image/png",
        image_base64=base64.b64encode(image.encoded).decode("ascii"),
        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        logits=tuple(float(each) for each in logits),
    )
