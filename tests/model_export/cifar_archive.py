"""CIFAR archives as their home page has them, with few and made-up images."""

import io
import pickle
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

LABELS = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(f"fine_{number}" for number in range(100)),
}
Images = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def images(kind: str, count: int, seed: int) -> Images:
    """Pixels `[count, 3, 32, 32]`, each image of one colour, and labels `[count]` that repeat all classes in order."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 3, 1, 1), dtype=np.uint8)
    targets = (np.arange(count) % len(LABELS[kind])).astype(np.uint8)
    return np.broadcast_to(colours, (count, 3, 32, 32)).copy(), targets


def binary(kind: str, training: Images, test: Images) -> dict[str, bytes]:
    """The files of the binary version."""
    if kind == "cifar100":
        names = "\n".join(LABELS[kind]) + "\n"
        return {
            "train.bin": _records(training, 2),
            "test.bin": _records(test, 2),
            "fine_label_names.txt": names.encode(),
        }
    files = {f"data_batch_{number}.bin": _records(part, 1) for number, part in enumerate(_fifths(training), start=1)}
    meta = "\n".join(LABELS[kind]) + "\n\n"
    return files | {"test_batch.bin": _records(test, 1), "batches.meta.txt": meta.encode()}


def python(kind: str, training: Images, test: Images) -> dict[str, bytes]:
    """The files of the python version, pickled as Python 2 did it."""
    if kind == "cifar100":
        meta = python2_pickle({"fine_label_names": list(LABELS[kind])})
        return {"train": _pickled(training, "fine_labels"), "test": _pickled(test, "fine_labels"), "meta": meta}
    parts = {f"data_batch_{number}": _pickled(part, "labels") for number, part in enumerate(_fifths(training), start=1)}
    meta = python2_pickle({"label_names": list(LABELS[kind]), "num_vis": 3072})
    return parts | {"test_batch": _pickled(test, "labels"), "batches.meta": meta}


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The files in a folder, as they lie after unpacking."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, files: Mapping[str, bytes]) -> Path:
    """The files in a compressed tar archive, inside a folder."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-batches/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def small_cifar10(folder: Path, count: int = 40) -> Path:
    """A folder with CIFAR-10 of few images."""
    return write_folder(folder, binary("cifar10", images("cifar10", count, seed=1), images("cifar10", 20, seed=2)))


class _Python2Pickler(pickle._Pickler):
    """Writes every string as Python 2 wrote its own: bytes without an encoding."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: Any) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(content)) + content)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[str] = save_string
    dispatch[bytes] = save_string


def python2_pickle(content: Any) -> bytes:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def _pickled(part: Images, targets: str) -> bytes:
    pixels, labels = part
    return python2_pickle({"data": pixels.reshape(len(pixels), -1), targets: labels.tolist(), "batch_label": "batch"})


def _records(part: Images, label_bytes: int) -> bytes:
    pixels, labels = part
    before = np.zeros((len(labels), label_bytes - 1), np.uint8)
    return np.concatenate([before, labels[:, None], pixels.reshape(len(pixels), -1)], axis=1).tobytes()


def _fifths(part: Images) -> list[Images]:
    pixels, labels = part
    return list(zip(np.array_split(pixels, 5), np.array_split(labels, 5), strict=True))
