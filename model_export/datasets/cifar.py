"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from the archives of their home page: the binary or the python version.

A folder with the archive, with its unpacked files, or the archive itself; nothing is unpacked to disk. The python
version is made of pickles, of which no more is executed than the building of arrays.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.datasets.base import Batch, Facts, PixelData
from model_export.errors import ExportError
from model_export.presets import PRESETS

SIDE = 32
PIXELS = 3 * SIDE * SIDE
# 64,000 iterations of 128 images (section 4.2) are 164 passes over 50,000.
EPOCHS = 164
# All that a pickled array is made of, whichever numpy and Python wrote it.
ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class Layout:
    """One version of one data set: its files by name, and where labels are found in them.

    In the binary version a record is `label_bytes`, of which the last is the label, and 3,072 pixels; in the python
    version a file is a pickled dictionary with the entries `targets` and `label_names`.
    """

    title: str
    classes: int
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    meta: str
    label_bytes: int = 0
    targets: str = ""
    label_names: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """All of them, by name."""
        return (*self.training, *self.held_out, self.meta)


_TEN = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = {
    "cifar10": (
        Layout("CIFAR-10", 10, tuple(f"{name}.bin" for name in _TEN), ("test_batch.bin",), "batches.meta.txt", 1),
        Layout("CIFAR-10", 10, _TEN, ("test_batch",), "batches.meta", targets="labels", label_names="label_names"),
    ),
    "cifar100": (
        # Here the coarse label stands before the fine one.
        Layout("CIFAR-100", 100, ("train.bin",), ("test.bin",), "fine_label_names.txt", 2),
        Layout("CIFAR-100", 100, ("train",), ("test",), "meta", targets="fine_labels", label_names="fine_label_names"),
    ),
}


def read_cifar(kind: str, place: Path, *, flip: bool) -> PixelData:
    """Read a whole data set, 180 MB.

    Args:
        kind: a key of `LAYOUTS`.
        place: a folder with the archive or with the unpacked files, or the archive.
        flip: whether training images are mirrored.

    Raises:
        ExportError: files are missing or damaged.
    """
    files = _files(place, {name for layout in LAYOUTS[kind] for name in layout.files})
    layout = next((each for each in LAYOUTS[kind] if files.keys() >= set(each.files)), None)
    if layout is None:
        choice = ", or ".join(", ".join(each.files) for each in LAYOUTS[kind])
        raise ExportError(f"{place} does not hold all of {LAYOUTS[kind][0].title}: it needs {choice}")
    training, held_out = (_read(files, names, layout) for names in (layout.training, layout.held_out))
    facts = Facts(
        name=layout.title,
        held_out_name=f"{layout.title}, test set",
        labels=_labels(files[layout.meta], layout),
        preprocessing=PRESETS[kind],
        epochs=EPOCHS,
        training_images=len(training.targets),
        held_out_images=len(held_out.targets),
    )
    return PixelData(facts, training, held_out, flip=flip)


def _files(place: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted files of a folder, of the folders in it and of the archives in it, or of an archive."""
    if place.is_file():
        return _archived(place, wanted)
    if not place.is_dir():
        raise ExportError(f"{place} is neither a folder nor an archive")
    found = {path.name: path for path in (*place.glob("*"), *place.glob("*/*")) if path.name in wanted}
    if found:
        return {name: path.read_bytes() for name, path in found.items() if path.is_file()}
    archives = [_archived(path, wanted) for path in sorted(place.glob("cifar-*.tar.gz"))]
    return next((files for files in archives if files), {})


def _archived(path: Path, wanted: set[str]) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as archive:
            members = [each for each in archive if each.isfile() and Path(each.name).name in wanted]
            contents = {Path(each.name).name: archive.extractfile(each) for each in members}
            return {name: content.read() for name, content in contents.items() if content}
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ExportError(f"{path} is no whole tar archive ({error}): fetch it again") from error


def _labels(meta: bytes, layout: Layout) -> tuple[str, ...]:
    if layout.label_names:
        labels = tuple(map(str, _unpickle(meta, layout.meta).get(layout.label_names, ())))
    else:
        labels = tuple(meta.decode("utf-8", "replace").split())
    if len(labels) != layout.classes:
        raise ExportError(f"{layout.meta} has {len(labels)} labels and not {layout.classes}: fetch the archive again")
    return labels


def _read(files: dict[str, bytes], names: Iterable[str], layout: Layout) -> Batch:
    """Images uint8 `[n, 3, 32, 32]` and class indices int64 `[n]` of some files together."""
    read = _python if layout.targets else _binary
    parts = [_checked(*read(files[name], name, layout), name, layout) for name in names]
    pixels, targets = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Batch(
        torch.from_numpy(pixels).reshape(-1, 3, SIDE, SIDE),
        torch.from_numpy(targets.astype(np.int64)),
    )


def _binary(content: bytes, name: str, layout: Layout) -> tuple[NDArray[Any], NDArray[Any]]:
    size = layout.label_bytes + PIXELS
    if len(content) % size:
        raise ExportError(f"{name} is cut off: its length is no multiple of {size} bytes; fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1]


def _python(content: bytes, name: str, layout: Layout) -> tuple[NDArray[Any], NDArray[Any]]:
    batch = _unpickle(content, name)
    return np.asarray(batch.get("data")), np.asarray(batch.get(layout.targets))


def _checked(
    pixels: NDArray[Any], targets: NDArray[Any], name: str, layout: Layout
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    images = pixels.dtype == np.uint8 and pixels.ndim == 2 and pixels.shape[1] == PIXELS and len(pixels) > 0
    if not images or targets.shape != (len(pixels),) or targets.dtype.kind not in "ui":
        raise ExportError(f"{name} does not hold images of {PIXELS} bytes with a label each: fetch it again")
    if targets.min() < 0 or targets.max() >= layout.classes:
        raise ExportError(f"{name} has a label outside 0 to {layout.classes - 1}: it is no part of {layout.title}")
    return pixels, targets


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickle(content: bytes, name: str) -> dict[str, Any]:
    """The archives were written by Python 2, whose strings, keys and arrays alike, are read as latin-1."""
    try:
        found = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle stumbles over whatever is at hand
        raise ExportError(f"{name} is damaged, or holds more than arrays ({error}): fetch the archive again") from error
    if not isinstance(found, dict):
        raise ExportError(f"{name} is no batch of CIFAR: fetch the archive again")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}
