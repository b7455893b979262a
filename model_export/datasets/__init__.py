"""Data to train on, by the name that the command line gives them."""

from pathlib import Path
from typing import TYPE_CHECKING

from model_export.errors import ExportError

if TYPE_CHECKING:  # the command line asks for the forms, and must not wait for torch
    from model_export.datasets.base import DataSet

FORMS = "digits, cifar10:DIR, cifar100:DIR, or folder:DIR with a sub-folder a class"
KINDS = ("cifar10", "cifar100", "folder")


def is_known(name: str) -> bool:
    """Whether it is one of `FORMS`."""
    kind, _, place = name.partition(":")
    return name == "digits" or (kind in KINDS and place != "")


def open_data(name: str, input_size: int, *, flip: bool = True) -> "DataSet":
    """The data set of that name, read as far as its size asks for.

    Args:
        name: one of `FORMS`.
        input_size: of the network, in pixels; it decides how a folder's images are cut. The others are 32 pixels wide.
        flip: whether the mirror image of a training image has the same label. Never for digits.

    Raises:
        ExportError: the name is unknown, or the data are missing, damaged or too few.
    """
    if not is_known(name):
        raise ExportError(f"unknown data {name}: give {FORMS}")
    kind, _, place = name.partition(":")
    # Each reader is imported where it is asked for: scikit-learn alone takes a second.
    if name == "digits":
        from model_export.datasets.digits import DigitData  # noqa: PLC0415

        return DigitData()
    if kind == "folder":
        from model_export.datasets.folder import open_folder  # noqa: PLC0415

        return open_folder(Path(place), input_size, flip=flip)
    from model_export.datasets.cifar import read_cifar  # noqa: PLC0415

    return read_cifar(kind, Path(place), flip=flip)
