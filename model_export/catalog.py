"""name -> how to build it, and the size of image it was made for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from model_export.architectures.resnet import CifarResNet
from model_export.errors import ExportError


@dataclass(frozen=True)
class Architecture:
    """A network that can be built for any number of classes."""

    name: str
    input_size: int
    build: Callable[[int], CifarResNet]


def _cifar(depth: int) -> Architecture:
    return Architecture(f"resnet{depth}", 32, partial(CifarResNet, depth))


ARCHITECTURES = {each.name: each for each in map(_cifar, (20, 32, 44, 56, 110))}


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        ExportError: there is none.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError as error:
        raise ExportError(f"unknown architecture {name}: choose one of {', '.join(ARCHITECTURES)}") from error
