"""The images that each claim of a card rests on: calibration, verdict, golden replay, accuracy.

None of the images that a graph was calibrated on takes part in its verdict or in its accuracy.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from model_export.checkpoints import Checkpoint
from model_export.datasets.digits import DIGITS, write_digits
from model_export.errors import ExportError
from model_export.evaluate import LabelledImages, labelled_images
from model_export.images import (
    EncodedImage,
    Pixels,
    colour_chart,
    image_files,
    noise,
    read_image,
    shipped_images,
    spread,
    to_pixels,
)
from service.artifact import CalibrationMethod, Int8Target, Precision, Preprocessing

PARITY_IMAGES = 32
MAX_REAL = 16
# More change the ranges by less than their rounding, and each takes a second of a deep network.
MAX_CALIBRATION = 256
MIN_CALIBRATION = 8
MAX_VERDICT = 1000
MIN_VERDICT = 4
# Without other images for the verdict, one in so many of the calibration folder is kept for it.
KEPT_FOR_VERDICT = 4


@dataclass(frozen=True)
class Plan:
    """What precision is asked for, and what it may cost.

    `calibration` is a folder of images, `method` how ranges are found on them (int8); `min_agreement` is the least
    share of verdict images, in [0, 1], on which top-1 must be float32's (fp16 and int8).
    """

    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    target: Int8Target = "cpu"
    calibration: Path | None = None
    method: CalibrationMethod | Literal["auto"] = "auto"
    min_agreement: float = 0.99


@dataclass(frozen=True)
class Evidence:
    """Images by their use: `real` for golden replay, pixels of the verdict and of the calibration, labelled ones."""

    real: list[EncodedImage]
    verdict: Pixels
    calibration: Pixels | None
    labelled: LabelledImages | None


def gather(checkpoint: Checkpoint, plan: Plan, images: Path | None, evaluate: Path | None, scratch: Path) -> Evidence:
    """The images for a conversion.

    Args:
        checkpoint: says how they are prepared, and whether its own data are at hand.
        plan: the precision and its calibration folder.
        images: a folder of real images for the verdict and golden replay; when absent those of `evaluate`, and without
            them the shipped digits, or for int8 a part of the calibration folder.
        evaluate: a labelled folder.
        scratch: a folder for data that come in a package instead of in files.

    Raises:
        ExportError: a folder is missing, empty or not labelled, or int8 has nothing to calibrate on.
    """
    recipe = checkpoint.preprocessing
    calibration = plan.calibration
    labelled = labelled_images(evaluate, checkpoint.labels) if evaluate else None
    if checkpoint.said.data == DIGITS and plan.precision != "fp32":
        training, held_out = write_digits(scratch)
        calibration = calibration or training
        labelled = labelled or labelled_images(held_out, checkpoint.labels)
    given = image_files(images) if images else _paths(labelled)
    if plan.precision != "int8":
        seen = [read_image(path) for path in spread(given, MAX_VERDICT)] or shipped_images()
        real = spread(seen, MAX_REAL)
        return Evidence(real, parity_pixels(seen, recipe, plan.precision), None, labelled)
    if calibration is None:
        raise ExportError("int8 needs --calibration DIR: a few hundred images like those that the model will see")
    ranges, others = _split(image_files(calibration), given)
    known = {_digest(image) for image in ranges}
    verdict = [image for image in map(read_image, spread(others, MAX_VERDICT)) if _digest(image) not in known]
    _refuse_too_few(len(ranges), len(verdict))
    return Evidence(
        spread(verdict, MAX_REAL), _pixels(verdict, recipe), _pixels(ranges, recipe), _without(labelled, known)
    )


def parity_pixels(seen: Sequence[EncodedImage], recipe: Preprocessing, precision: Precision) -> Pixels:
    """What a graph is compared with torch on, `[n, H, W, 3]`: a colour chart and real images; for float32 also noise.

    On noise two classes may be as close together as float16 rounds, and which of them wins says nothing.
    """
    if precision == "fp16":
        return _pixels([colour_chart(), *seen], recipe)
    some = _pixels([colour_chart(), *spread(seen, PARITY_IMAGES // 2 - 1)], recipe)
    return np.concatenate([some, noise(PARITY_IMAGES - len(some), recipe.crop)])


def _paths(labelled: LabelledImages | None) -> list[Path]:
    return [path for path, _ in labelled.files] if labelled else []


def _split(calibration: list[Path], others: list[Path]) -> tuple[list[EncodedImage], list[Path]]:
    """Images to calibrate on, and files for the verdict: others, or a part of the folder that is then left out."""
    if not others:
        others = calibration[::KEPT_FOR_VERDICT]
        calibration = [path for path in calibration if path not in set(others)]
    return [read_image(path) for path in spread(calibration, MAX_CALIBRATION)], others


def _digest(image: EncodedImage) -> bytes:
    return hashlib.sha256(image.encoded).digest()


def _without(labelled: LabelledImages | None, known: set[bytes]) -> LabelledImages | None:
    """The labelled images without those of the calibration, whatever their names."""
    if labelled is None:
        return None
    kept = tuple((path, target) for path, target in labelled.files if _digest(read_image(path)) not in known)
    return replace(labelled, files=kept)


def _refuse_too_few(ranges: int, verdict: int) -> None:
    if ranges < MIN_CALIBRATION or verdict < MIN_VERDICT:
        raise ExportError(
            f"{ranges} images to calibrate on and {verdict} others to judge by are too few: int8 needs "
            f"{MIN_CALIBRATION} and {MIN_VERDICT} at least, and hundreds to be trusted"
        )


def _pixels(images: Sequence[EncodedImage], recipe: Preprocessing) -> Pixels:
    return np.stack([to_pixels(image, recipe) for image in images])
