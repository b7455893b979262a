"""The folder of models: `models/<name>/<version>/model.onnx`."""

import re
from dataclasses import dataclass
from pathlib import Path

from service.errors import StartError

MODEL_FILE = "model.onnx"
# A time in milliseconds has room, and JavaScript's numbers have room for it.
VERSION_DIGITS = 15
# As the exporter writes it: 01 beside 1 would be the same version twice.
VERSION = f"[1-9][0-9]{{0,{VERSION_DIGITS - 1}}}"


class RepositoryError(StartError):
    """There is nothing to serve."""


@dataclass(frozen=True, order=True)
class Location:
    """One version of one model on disk."""

    name: str
    version: int
    path: Path

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def version_of(folder: str) -> int | None:
    """The version in a folder of this name; None where it is no version's."""
    return int(folder) if re.fullmatch(VERSION, folder) else None


def discover(folder: Path) -> list[Location]:
    """Every model file under `folder`, by name and version; entries that do not fit the layout are ignored.

    Raises:
        RepositoryError: the folder is missing or holds no model.
    """
    paths = folder.glob(f"*/*/{MODEL_FILE}")
    found = [
        Location(path.parent.parent.name, version, path)
        for path in paths
        if (version := version_of(path.parent.name)) and not path.parent.parent.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise RepositoryError(
            f"no model in {folder}/<name>/<version>/{MODEL_FILE}: "
            f"run `resnet-export convert SOURCE --name NAME --out {folder}` first"
        )
    return sorted(found)
