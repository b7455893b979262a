"""Data to train on, by the name that the command line gives them."""

from pathlib import Path

from model_export.datasets.base import DataSet
from model_export.errors import ExportError

FORMS = "digits, cifar10:DIR, cifar100:DIR or folder:DIR"
KINDS = ("cifar10", "cifar100", "folder")


def open_data(name: str, input_size: int, *, flip: bool = True) -> DataSet:
    """The data set of that name, read as far as its size asks for.

    Args:
        name: one of `FORMS`.
        input_size: of the network, in pixels; it decides how a folder's images are cut. The others are 32 pixels wide.
        flip: whether the mirror image of a training image has the same label. Never for digits.

    Raises:
        ExportError: the name is unknown, or the data are missing, damaged or too few.
    """
    kind, _, place = name.partition(":")
    # Each reader is imported where it is asked for: scikit-learn alone takes a second.
    if name == "digits":
        from model_export.datasets.digits import DigitData  # noqa: PLC0415

        return DigitData()
    if kind not in KINDS or not place:
        raise ExportError(f"unknown data {name}: give {FORMS}")
    if kind == "folder":
        from model_export.datasets.folder import open_folder  # noqa: PLC0415

        return open_folder(Path(place), input_size, flip=flip)
    from model_export.datasets.cifar import read_cifar  # noqa: PLC0415

    return read_cifar(kind, Path(place), flip=flip)
