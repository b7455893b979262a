"""name -> how to build it, and what the paper says of it.

    resnet18 34 50 101 152     ImageNet, option B; bottleneck stride on the 3×3 (v1.5), or on the 1×1 with `-v1`
    plain18 plain34            the same layers without shortcuts
    vgg19 vgg19_bn             the network the paper compares with
    resnet20 32 44 56 110      CIFAR, option A
    plain20 32 44 56 110       the same layers without shortcuts
    cifar-resnetN              any depth N = 6n + 2, also where ImageNet has the number (50, 152)

A suffix `-a`, `-b` or `-c` takes another shortcut option: `resnet34-a`, `resnet20-b`, `cifar-resnet50-c`.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from model_export.architectures.resnet import ResNet, ResNetConfig, Shortcut
from model_export.architectures.vgg import VGG19
from model_export.errors import ExportError
from model_export.shapes import ShapesOnly

IMAGENET_WIDTHS = (64, 128, 256, 512)
CIFAR_WIDTHS = (16, 32, 64)
# Table 1: depth -> bottleneck or not, blocks of each stage.
IMAGENET = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
_NAME = re.compile(r"(cifar-)?(resnet|plain)([1-9]\d{0,3})(-[abc])?(-v1)?")


@dataclass(frozen=True)
class Paper:
    """What the paper states: multiply-adds (table 1), parameters (table 6), errors in % (tables 2, 3 and 6)."""

    multiply_adds: float | None = None
    parameters: float | None = None
    errors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """A network that can be built for any number of classes, and for RGB or grey images."""

    name: str
    depth: int
    input_size: int
    config: ResNetConfig | None
    batch_norm: bool = False
    paper: Paper = Paper()

    def build(self, num_classes: int, in_channels: int = 3) -> nn.Module:
        """The network, freshly initialised."""
        if self.config is None:
            return VGG19(num_classes, in_channels, batch_norm=self.batch_norm)
        return ResNet(self.config, num_classes, in_channels)

    def build_empty(self, num_classes: int, in_channels: int = 3) -> nn.Module:
        """The network without memory behind its tensors: names and shapes only."""
        with torch.device("meta"), ShapesOnly():
            return self.build(num_classes, in_channels)

    @property
    def classes(self) -> int:
        """The number of classes of the paper's task: ImageNet's 1000 or CIFAR's 10."""
        return 10 if self.config is not None and self.config.cifar else 1000


# Tables 2 and 3: 10-crop validation errors, top-1, ResNet-34 by its shortcut option. Table 6: CIFAR-10 test errors.
_IMAGENET_FLOPS = {18: 1.8e9, 34: 3.6e9, 50: 3.8e9, 101: 7.6e9, 152: 11.3e9}
_IMAGENET_ERRORS = {
    "resnet18-a": 27.88,
    "resnet34-a": 25.03,
    "resnet34": 24.52,
    "resnet34-c": 24.19,
    "resnet50-v1": 22.85,
    "resnet101-v1": 21.75,
    "resnet152-v1": 21.43,
    "plain18": 27.94,
    "plain34": 28.54,
}
_CIFAR = {20: (0.27e6, 8.75), 32: (0.46e6, 7.51), 44: (0.66e6, 7.17), 56: (0.85e6, 6.97), 110: (1.7e6, 6.43)}


def listed() -> list[Architecture]:
    """The architectures that have a name in the paper or in torchvision; `find_architecture` builds more."""
    names = [f"resnet{depth}" for depth in IMAGENET]
    names += [f"resnet{depth}-v1" for depth, (bottleneck, _) in IMAGENET.items() if bottleneck]
    names += ["plain18", "plain34", "vgg19", "vgg19_bn"]
    names += [f"{kind}{depth}" for kind in ("resnet", "plain") for depth in CIFAR_DEPTHS]
    return [find_architecture(name) for name in names]


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        ExportError: there is none, with the choice.
    """
    if name in ("vgg19", "vgg19_bn"):
        paper = Paper(multiply_adds=19.6e9)
        return Architecture(name, 19, 224, None, batch_norm=name == "vgg19_bn", paper=paper)
    match = _NAME.fullmatch(name)
    if match is None:
        raise ExportError(_unknown(name))
    cifar, kind, depth, option, v1 = match.groups()
    if not cifar and int(depth) in IMAGENET:
        return _imagenet(name, kind, int(depth), option, v1 is not None)
    if v1 or (int(depth) - 2) % 6 or int(depth) < 8:
        raise ExportError(_unknown(name))
    return _cifar(name, kind, int(depth), option)


def _imagenet(name: str, kind: str, depth: int, option: str | None, v1: bool) -> Architecture:
    bottleneck, blocks = IMAGENET[depth]
    if (v1 and not bottleneck) or (kind == "plain" and (bottleneck or option)):
        raise ExportError(_unknown(name))
    config = ResNetConfig(bottleneck, blocks, IMAGENET_WIDTHS, _shortcut(kind, option, "B"), stride_on_1x1=v1)
    error = _IMAGENET_ERRORS.get(name)
    paper = Paper(_IMAGENET_FLOPS[depth], errors={} if error is None else {"ImageNet, 10-crop top-1": error})
    return Architecture(name, depth, 224, config, paper=paper)


def _cifar(name: str, kind: str, depth: int, option: str | None) -> Architecture:
    if kind == "plain" and option:
        raise ExportError(_unknown(name))
    blocks = ((depth - 2) // 6,) * 3
    config = ResNetConfig(False, blocks, CIFAR_WIDTHS, _shortcut(kind, option, "A"), cifar=True)
    stated: dict[str, Any] = {}
    if depth in _CIFAR and config.shortcut == "A":
        parameters, error = _CIFAR[depth]
        stated = {"parameters": parameters, "errors": {"CIFAR-10": error}}
    return Architecture(name, depth, 32, config, paper=Paper(**stated))


def _shortcut(kind: str, option: str | None, default: Shortcut) -> Shortcut:
    if kind == "plain":
        return "plain"
    options: dict[str, Shortcut] = {"-a": "A", "-b": "B", "-c": "C"}
    return options[option] if option else default


def _unknown(name: str) -> str:
    return f"unknown architecture {name}: choose one of {', '.join(_names())}, or cifar-resnetN with N = 6n + 2"


def _names() -> list[str]:
    return [each.name for each in listed()]
