"""The conversion as one sequence: load, build, export, check, prove, card, write."""

import base64
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from torch import nn

from model_export.checkpoints import Checkpoint, Given, read_checkpoint
from model_export.errors import ExportError
from model_export.graph import OPSET, export
from model_export.images import EncodedImage, colour_chart, images_in, noise, shipped_images, to_pixels
from model_export.parity import IMAGES, judge, reference_logits
from service.artifact import CARD_PROPERTY, ExportRecord, Golden, InputSpec, ModelCard, Parity
from service.golden import GoldenMismatch, replay
from service.runtime import open_onnx

MODEL_FILE = "model.onnx"
GOLDEN_IMAGES = 8
# Golden images travel in the card of every artifact, so photographs of many megabytes are not taken.
MAX_GOLDEN_BYTES = 2**18
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "pillow")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """Where the artifact goes: `out/name/version/model.onnx`; the next free version when none is given."""

    name: str
    out: Path
    version: int | None = None


@dataclass(frozen=True)
class Converted:
    """A written artifact."""

    path: Path
    card: ModelCard


def convert(source: str, given: Given, target: Target, images: Path | None, progress: Progress) -> Converted:
    """Turn a checkpoint into an artifact, atomically: a complete, proved file appears, or nothing does.

    Args:
        source: SOURCE of the command line.
        given: what the caller says of the checkpoint.
        target: where to write.
        images: a folder of real images for parity and golden replay; the shipped digits when absent.
        progress: called with a line at each step.

    Raises:
        ExportError: the first thing that is wrong.
    """
    _check_name(target.name)
    progress(f"reading {source}")
    checkpoint = read_checkpoint(source, given)
    for note in checkpoint.notes:
        progress(note)
    network = checkpoint.build()
    real = images_in(images) if images else shipped_images()
    progress(f"exporting {checkpoint.architecture.name} to ONNX, opset {OPSET}")
    model = export(network, checkpoint.preprocessing, checkpoint.in_channels)
    folder = target.out / target.name
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder))
    try:
        staged = staging / MODEL_FILE
        onnx.save(model, staged)
        progress("comparing onnxruntime with torch")
        parity = prove(staged, checkpoint, network, real)
        progress("recording golden images")
        card = _card(checkpoint, network, target.name, parity, real)
        _write(model, card, staged)
        return Converted(_publish(staging, folder, target.version) / MODEL_FILE, card)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: it holds versions
            folder.rmdir()


def prove(model: Path, checkpoint: Checkpoint, network: nn.Module, real: list[EncodedImage]) -> Parity:
    """Parity of an ONNX file with the checkpoint on real images, a colour chart and noise.

    Raises:
        ExportError: they differ.
    """
    recipe = checkpoint.preprocessing
    seen = np.stack([to_pixels(image, recipe) for image in [colour_chart(), *real][: IMAGES // 2]])
    pixels = np.concatenate([seen, noise(IMAGES - len(seen), recipe.crop)])
    return judge(model, reference_logits(network, recipe, pixels), pixels)


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or "/" in name or name != name.strip():
        raise ExportError(f"{name!r} cannot be a model's name: it becomes a folder and part of a URL")


def _card(checkpoint: Checkpoint, network: nn.Module, name: str, parity: Parity, real: list[EncodedImage]) -> ModelCard:
    crop = checkpoint.preprocessing.crop
    return ModelCard(
        name=name,
        architecture=checkpoint.architecture.name,
        input=InputSpec(height=crop, width=crop),
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        precision="fp32",
        source=checkpoint.source,
        export=ExportRecord(
            versions={library: version(library) for library in LIBRARIES},
            opset=OPSET,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        parity=parity,
        accuracy=checkpoint.accuracy,
        golden=tuple(_golden(image, checkpoint, network) for image in _golden_images(real)),
    )


def _golden_images(real: list[EncodedImage]) -> list[EncodedImage]:
    small = [image for image in [*real, *shipped_images()] if len(image.encoded) <= MAX_GOLDEN_BYTES]
    return [colour_chart(), *small[: GOLDEN_IMAGES - 1]]


def _golden(image: EncodedImage, checkpoint: Checkpoint, network: nn.Module) -> Golden:
    pixels = to_pixels(image, checkpoint.preprocessing)
    logits = reference_logits(network, checkpoint.preprocessing, pixels[np.newaxis])[0]
    return Golden(
        media_type=image.media_type,
        image_base64=base64.b64encode(image.encoded).decode("ascii"),
        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        logits=tuple(float(each) for each in logits),
    )


def _write(model: onnx.ModelProto, card: ModelCard, path: Path) -> None:
    """Write the finished file and replay it as a server would, so that what is published is known to be accepted."""
    onnx.helper.set_model_props(model, {CARD_PROPERTY: card.model_dump_json()})
    onnx.save(model, path)
    try:
        replay(open_onnx(path, "cpu", threads=1), card)
    except GoldenMismatch as error:
        raise ExportError(f"the finished file fails its own golden images: {error}") from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _publish(staging: Path, folder: Path, wanted: int | None) -> Path:
    """Rename the staging folder to its version: readers see all of it or nothing."""
    staging.chmod(0o755)
    while True:
        final = folder / str(wanted or _next_version(folder))
        try:
            return staging.rename(final)
        except OSError as error:
            # Another conversion may have taken the same number a moment ago.
            if wanted is not None or not final.exists():
                raise ExportError(
                    f"cannot write {final}: {error.strerror}; choose another --version or --out"
                ) from error


def _next_version(folder: Path) -> int:
    return max((int(each.name) for each in folder.iterdir() if each.name.isdecimal()), default=0) + 1
