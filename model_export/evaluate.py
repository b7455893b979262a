"""Top-1 accuracy of an ONNX file on a labelled folder, through the preprocessing and the session that will serve.

The folder is laid out as torchvision's ImageFolder: one folder a class, with its images inside.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model_export.errors import ExportError
from model_export.images import image_files, read_image, to_pixels
from service.artifact import Accuracy, Preprocessing
from service.cpus import available_cpus
from service.runtime import open_onnx

BATCH = 32


@dataclass(frozen=True)
class LabelledImages:
    """Image files and the class index of each, by path; `name` says what they are."""

    name: str
    files: tuple[tuple[Path, int], ...]


def labelled_images(folder: Path, labels: tuple[str, ...]) -> LabelledImages:
    """The images of a labelled folder.

    A class is found by its folder's name: a label, or a class index; or, where there are as many folders as classes, by
    its place among the sorted names, as ImageFolder counts.

    Raises:
        ExportError: a folder that is no class, or no image at all.
    """
    paths = image_files(folder)
    names = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    if not names:
        raise ExportError(f"{folder} has no folder for each class: put the images into {folder}/<label>/")
    index = _class_indices(folder, names, labels)
    return LabelledImages(
        folder.resolve().name,
        tuple((path, index[path.relative_to(folder).parts[0]]) for path in paths if path.parent != folder),
    )


def _class_indices(folder: Path, names: list[str], labels: tuple[str, ...]) -> dict[str, int]:
    known = {label: position for position, label in enumerate(labels)}
    if set(names) <= known.keys():
        if twice := next((name for name in names if labels.count(name) > 1), None):
            raise ExportError(f"{folder}/{twice}: two classes have this label, so name the folders by class index")
        return {name: known[name] for name in names}
    if all(name.isdecimal() and int(name) < len(labels) for name in names):
        return {name: int(name) for name in names}
    # One folder that is a label, or a number, shows that the others were meant to be: their place says nothing then.
    if len(names) == len(labels) and not any(name in known or name.isdecimal() for name in names):
        return {name: position for position, name in enumerate(names)}
    strange = next(name for name in names if name not in known)
    raise ExportError(
        f"{folder}/{strange} is neither a label nor a class index, and {len(names)} folders are not {len(labels)} "
        "classes: name each folder by its label"
    )


def evaluate(model: Path, images: LabelledImages, recipe: Preprocessing) -> Accuracy:
    """Classify every image and count, with a progress bar.

    Raises:
        ExportError: an image cannot be decoded.
    """
    backend = open_onnx(model, "cpu", available_cpus())
    right = 0
    starts = range(0, len(images.files), BATCH)
    for start in tqdm(starts, "evaluating", unit="batch", leave=False):
        part = images.files[start : start + BATCH]
        pixels = np.stack([to_pixels(read_image(path), recipe) for path, _ in part])
        found = backend.run(pixels).logits.argmax(axis=1)
        right += int((found == np.array([target for _, target in part])).sum())
    return Accuracy(data=images.name, images=len(images.files), top1=right / len(images.files))
