"""Preprocessing recipes by name, for checkpoints that do not bring their own (contract section 2)."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model_export.errors import ExportError
from service.artifact import Preprocessing, first_problem

_IMAGENET: dict[str, Any] = {"crop": 224, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_SMALL: dict[str, Any] = {"resize": 32, "crop": 32, "interpolation": "bilinear"}

# imagenet-*: torchvision's IMAGENET1K_V1 and V2 weights, and timm's 224 / 0.95 of its a1 family.
# cifar10, cifar100: mean and standard deviation of the training set's pixels.
# digits: pixels in [-1, 1]; one interpolation for 8×8 scans and for photographs alike.
PRESETS = {
    "imagenet-v1": Preprocessing(resize=256, interpolation="bilinear", **_IMAGENET),
    "imagenet-v2": Preprocessing(resize=232, interpolation="bilinear", **_IMAGENET),
    "imagenet-timm": Preprocessing(resize=235, interpolation="bicubic", **_IMAGENET),
    "cifar10": Preprocessing(**_SMALL, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "cifar100": Preprocessing(**_SMALL, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    "digits": Preprocessing(**_SMALL, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}


def find_preset(name: str) -> Preprocessing:
    """The recipe of that name, or in a JSON file with the fields of a card's preprocessing.

    Raises:
        ExportError: there is none, or the file is not valid.
    """
    if name.endswith(".json"):
        return _read(Path(name))
    try:
        return PRESETS[name]
    except KeyError as error:
        raise ExportError(f"unknown preset {name}: choose one of {', '.join(PRESETS)}, or a JSON file") from error


def _read(path: Path) -> Preprocessing:
    try:
        return Preprocessing.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ExportError(f"cannot read the preset {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ExportError(f"the preset {path} is not valid: {first_problem(error)}") from error
