"""scikit-learn's handwritten digits: real data that ship in a Python package.

1,797 scans of 8×8 pixels with 17 grey levels (UCI *Optical Recognition of Handwritten Digits*, CC BY 4.0).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn import datasets, model_selection
from torch import Tensor

from model_export.datasets.base import Batch, DataSet, Facts, shuffled
from model_export.presets import PRESETS

DIGIT_LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = "digits"
DIGITS_SIZE = 32
EPOCHS = 60
HELD_OUT = 0.2
HELD_OUT_NAME = "digits, held-out 20 %"
SPLIT_SEED = 0
# A caller's digit may be a small scan, a sharp screenshot or a photograph, so training sees all three enlargements.
ENLARGEMENTS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Digits:
    """A fixed split of the digits. Scans are uint8 `[n, 8, 8]`, targets int64 `[n]`."""

    train_scans: NDArray[np.uint8]
    train_targets: NDArray[np.int64]
    test_scans: NDArray[np.uint8]
    test_targets: NDArray[np.int64]


def load_digits() -> Digits:
    """The digits with the 20 % that are held out: stratified, and the same in every run."""
    digits = datasets.load_digits()
    scans = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train_scans, test_scans, train_targets, test_targets = model_selection.train_test_split(
        scans, digits.target, test_size=HELD_OUT, stratify=digits.target, random_state=SPLIT_SEED
    )
    return Digits(train_scans, train_targets, test_scans, test_targets)


class DigitData(DataSet):
    """The digits, enlarged to 32×32 and grey in all three channels."""

    def __init__(self) -> None:
        digits = load_digits()
        self.facts = Facts(
            name=DIGITS,
            held_out_name=HELD_OUT_NAME,
            labels=DIGIT_LABELS,
            preprocessing=PRESETS["digits"],
            epochs=EPOCHS,
            training_images=len(digits.train_scans),
            held_out_images=len(digits.test_scans),
        )
        self._enlarged = [enlarge(digits.train_scans, each) for each in ENLARGEMENTS]
        self._targets = torch.from_numpy(digits.train_targets)
        self._held_out = Batch(enlarge(digits.test_scans, ENLARGEMENTS[0]), torch.from_numpy(digits.test_targets))

    def training(self, size: int) -> Iterator[Batch]:
        """Each batch takes one of the enlargements, and is augmented."""
        for chosen in shuffled(len(self._targets), size):
            scans = self._enlarged[int(torch.randint(len(self._enlarged), ()))][chosen]
            yield Batch(self.normalise(augment(scans.unsqueeze(1).float() / 255)), self._targets[chosen])

    def held_out(self, size: int) -> Iterator[Batch]:
        """Enlarged as the service enlarges them."""
        for scans, targets in zip(*(torch.split(each, size) for each in self._held_out), strict=True):
            yield Batch(self.normalise(scans.unsqueeze(1).float() / 255), targets)


def write_digits(folder: Path) -> tuple[Path, Path]:
    """The scans as PNG files, `<part>/<class index>/<number>.png`: the folders of the training part and the held-out.

    Every other training scan is inverted, as half of the images were in training.
    """
    digits = load_digits()
    training, held_out = folder / "digits, training 80 %", folder / HELD_OUT_NAME
    for part, scans, targets in (
        (training, digits.train_scans, digits.train_targets),
        (held_out, digits.test_scans, digits.test_targets),
    ):
        for number, (scan, target) in enumerate(zip(scans, targets, strict=True)):
            path = part / str(target) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            inverted = part == training and number % 2
            Image.fromarray(255 - scan if inverted else scan).save(path)
    return training, held_out


def enlarge(scans: NDArray[np.uint8], enlargement: Image.Resampling) -> Tensor:
    """Scans `[n, 8, 8]` -> uint8 `[n, 32, 32]`, by the same resize that the service uses."""
    size = (DIGITS_SIZE, DIGITS_SIZE)
    return torch.from_numpy(np.stack([np.asarray(Image.fromarray(scan).resize(size, enlargement)) for scan in scans]))


def augment(images: Tensor) -> Tensor:
    """Grey images in [0, 1] `[n, 1, H, W]`: turned up to 12°, scaled and shifted a little, half of them inverted.

    Inverted, because people write dark on light while the scans are light on dark.
    """
    count = len(images)
    angle = _uniform(count, 0.21)
    scale = 1 + _uniform(count, 0.12)
    shift = _uniform(count, 0.15), _uniform(count, 0.15)
    rows = (
        torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[0]], dim=1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), shift[1]], dim=1),
    )
    grid = torch.nn.functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    inverted = (torch.rand(count, 1, 1, 1) < 0.5).float()
    return inverted * (1 - moved) + (1 - inverted) * moved


def _uniform(count: int, limit: float) -> Tensor:
    return (torch.rand(count) * 2 - 1) * limit
