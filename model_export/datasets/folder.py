"""A folder of images, one sub-folder a class, as torchvision's ImageFolder has it.

With folders `train` and `val` (or `valid`, `validation`, `test`) those are the parts; otherwise a fifth of each class
is held out, the same in every run.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model_export.datasets.base import Batch, DataSet, Facts, PixelData, shuffled
from model_export.errors import ExportError
from model_export.evaluate import LabelledImages, labelled_images
from model_export.images import decoded, image_files, read_image, to_pixels
from model_export.presets import PRESETS
from service.artifact import Preprocessing
from service.cpus import available_cpus
from service.resample import Window, resample

HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")
HELD_OUT = 0.2
SPLIT_SEED = 0
CIFAR_SIDE = 32
# 600,000 iterations of 256 images (section 3.4) are 120 passes over ImageNet.
EPOCHS = 120
# Section 3.4: the shorter side is a random number of pixels between these, before 224 are cut out.
SHORTER_SIDE = (256, 480)

Files = tuple[tuple[Path, int], ...]


def open_folder(folder: Path, input_size: int, *, flip: bool) -> DataSet:
    """The images of a folder, in memory where they are small, read again each epoch where they are not.

    Raises:
        ExportError: no images, fewer than two classes, or a class of fewer than two images.
    """
    parts = _parts(folder)
    if parts:
        labels = _labels(parts[0])
        training, held_out = (labelled_images(part, labels).files for part in parts)
        held_out_name = f"{folder.resolve().name}, {parts[1].name}"
    else:
        labels = _labels(folder)
        training, held_out = _split(labelled_images(folder, labels), labels)
        held_out_name = f"{folder.resolve().name}, held-out {HELD_OUT * 100:.0f} %"
    facts = Facts(
        name=f"folder {folder.resolve().name}",
        held_out_name=held_out_name,
        labels=labels,
        preprocessing=_preprocessing(input_size),
        epochs=EPOCHS,
        training_images=len(training),
        held_out_images=len(held_out),
    )
    if input_size > CIFAR_SIDE:
        return PhotographData(facts, training, held_out, flip=flip)
    return PixelData(facts, _in_memory(training, facts), _in_memory(held_out, facts), flip=flip)


def _parts(folder: Path) -> tuple[Path, Path] | None:
    held_out = next((folder / name for name in HELD_OUT_FOLDERS if (folder / name).is_dir()), None)
    return (folder / "train", held_out) if held_out and (folder / "train").is_dir() else None


def _labels(folder: Path) -> tuple[str, ...]:
    """The folders' names in sorted order."""
    paths = image_files(folder)
    labels = tuple(sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder}))
    if len(labels) < 2:
        raise ExportError(f"{folder} has {len(labels)} folders with images: training needs one for each of two classes")
    return labels


def _split(images: LabelledImages, labels: tuple[str, ...]) -> tuple[Files, Files]:
    """A fifth of each class, and one image at least, for the held-out part."""
    generator = np.random.default_rng(SPLIT_SEED)
    training, held_out = [], []
    for index, label in enumerate(labels):
        files = [each for each in images.files if each[1] == index]
        if len(files) < 2:
            raise ExportError(f"class {label} has one image: training needs one, and one that is held out")
        order = [files[place] for place in generator.permutation(len(files))]
        count = max(1, round(HELD_OUT * len(files)))
        held_out += order[:count]
        training += order[count:]
    return tuple(training), tuple(held_out)


def _preprocessing(input_size: int) -> Preprocessing:
    """As `imagenet-v1`, and for the CIFAR networks without the margin, which would be four pixels."""
    usual = PRESETS["imagenet-v1"]
    if input_size > CIFAR_SIDE:
        return usual
    return usual.model_copy(update={"resize": input_size, "crop": input_size})


def _in_memory(files: Files, facts: Facts) -> Batch:
    with ThreadPoolExecutor(available_cpus()) as pool:
        pixels = pool.map(lambda file: to_pixels(read_image(file[0]), facts.preprocessing), files)
        images = np.stack(list(tqdm(pixels, "reading", len(files), unit="image", leave=False)))
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor([target for _, target in files]))


class PhotographData(DataSet):
    """Images that are decoded when they are used, a batch ahead of the network."""

    def __init__(self, facts: Facts, training: Files, held_out: Files, *, flip: bool) -> None:
        self.facts = facts
        self._training = training
        self._held_out = held_out
        self._flip = flip

    def training(self, size: int) -> Iterator[Batch]:
        """Augmented as section 3.4 of the paper says: a random scale, a random crop, half of them mirrored."""

        def start(chosen: Tensor) -> tuple[list[Future[NDArray[np.uint8]]], Tensor]:
            files = [self._training[index] for index in chosen.tolist()]
            draws = torch.rand(len(files), 4).tolist()
            futures = [pool.submit(self._cut, path, draw) for (path, _), draw in zip(files, draws, strict=True)]
            return futures, torch.tensor([target for _, target in files])

        with ThreadPoolExecutor(available_cpus()) as pool:
            waiting = None
            for chosen in shuffled(len(self._training), size):
                begun = start(chosen)
                if waiting:
                    yield self._batch(*waiting)
                waiting = begun
            if waiting:
                yield self._batch(*waiting)

    def held_out(self, size: int) -> Iterator[Batch]:
        """Prepared as the service does it, in order."""
        recipe = self.facts.preprocessing
        with ThreadPoolExecutor(available_cpus()) as pool:
            for start in range(0, len(self._held_out), size):
                files = self._held_out[start : start + size]
                futures = [pool.submit(lambda path: to_pixels(read_image(path), recipe), path) for path, _ in files]
                yield self._batch(futures, torch.tensor([target for _, target in files]))

    def _batch(self, futures: Sequence[Future[NDArray[np.uint8]]], targets: Tensor) -> Batch:
        pixels = torch.from_numpy(np.stack([future.result() for future in futures]))
        return Batch(self.normalise(pixels.permute(0, 3, 1, 2).float() / 255), targets)

    def _cut(self, path: Path, draw: Sequence[float]) -> NDArray[np.uint8]:
        """A random part of an image, uint8 `[crop, crop, 3]`, by four numbers in [0, 1)."""
        recipe = self.facts.preprocessing
        pixels = decoded(read_image(path), recipe)
        least, most = SHORTER_SIDE
        factor = (least + int(draw[0] * (most - least + 1))) / min(pixels.shape[:2])
        height, width = (max(recipe.crop, round(side * factor)) for side in pixels.shape[:2])
        left, top = int(draw[1] * (width - recipe.crop + 1)), int(draw[2] * (height - recipe.crop + 1))
        cut = resample(pixels, width, height, recipe.interpolation, Window(left, top, recipe.crop, recipe.crop))
        return cut[:, ::-1].copy() if self._flip and draw[3] < 0.5 else cut
