"""Residual and plain networks: He et al., *Deep Residual Learning for Image Recognition* (arXiv 1512.03385).

ImageNet (table 1), input 224 × 224:

    stage     output       18            34            50, 101, 152
    conv1     112 × 112    7×7, 64, stride 2
    layer1     56 × 56     3×3 max pooling, stride 2, then the blocks: of width 64
    layer2     28 × 28     blocks of width 128, first stride 2
    layer3     14 × 14     blocks of width 256, first stride 2
    layer4      7 × 7      blocks of width 512, first stride 2
    fc          1 × 1      global average pooling, fully connected

CIFAR (section 4.2), depth 6n + 2, input 32 × 32:

    conv1      32 × 32     3×3, 16
    layer1     32 × 32     n basic blocks of width 16
    layer2     16 × 16     n basic blocks of width 32, first stride 2
    layer3      8 × 8      n basic blocks of width 64, first stride 2
    fc          1 × 1      global average pooling, fully connected

A plain network has the same layers and no shortcuts. The modules are named as torchvision names them, so that
checkpoints load key for key.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

# Section 3.3: A pads new channels with zeros, B projects where the dimensions change, C projects everywhere.
# "plain" has no shortcuts at all.
Shortcut = Literal["A", "B", "C", "plain"]


@dataclass(frozen=True)
class ResNetConfig:
    """What tells one network of the family from another.

    `stride_on_1x1` puts a bottleneck's stride on its first 1×1, as in the paper (v1); torchvision's v1.5 has it on the
    3×3. The weights have the same shapes either way, and the function differs.
    """

    bottleneck: bool
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    shortcut: Shortcut
    cifar: bool = False
    stride_on_1x1: bool = False


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1×1 convolution; batch normalisation follows, so it has no bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size at stride 1; batch normalisation follows, so it has no bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class ZeroPadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the channels that are new, half before and half after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + 2 padding, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


def make_shortcut(option: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """What carries a block's input past its convolutions; None where the network is plain."""
    changes = stride != 1 or in_channels != out_channels
    if option == "plain":
        return None
    if option == "C" or (option == "B" and changes):
        return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
    return ZeroPadShortcut(in_channels, out_channels, stride) if changes else nn.Identity()


class Block(nn.Module, ABC):
    """A residual branch and the shortcut around it: relu(F(x) + x), or relu(F(x)) in a plain network.

    While `closed`, a block is its shortcut alone, relu(x): for skip schedules. A plain block cannot be closed.
    """

    expansion: ClassVar[int]
    downsample: nn.Module | None
    closed = False

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride): the branch F before the addition."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        if self.downsample is None:
            return F.relu(self.residual(x))
        if self.closed:
            return F.relu(self.downsample(x))
        return F.relu(self.residual(x) + self.downsample(x))


class BasicBlock(Block):
    """Two 3×3 convolutions and the shortcut around them (figure 2)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, config: ResNetConfig) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(config.shortcut, in_channels, width, stride)

    def residual(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, width, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        residual: Tensor = self.bn2(self.conv2(hidden))
        return residual


class Bottleneck(Block):
    """1×1 to a quarter of the channels, 3×3, 1×1 back, and the shortcut around them (figure 5)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, config: ResNetConfig) -> None:
        super().__init__()
        out_channels = width * self.expansion
        first, second = (stride, 1) if config.stride_on_1x1 else (1, stride)
        self.conv1 = conv1x1(in_channels, width, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, second)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = make_shortcut(config.shortcut, in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, 4 width, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        residual: Tensor = self.bn3(self.conv3(hidden))
        return residual


class ResNet(nn.Module):
    """A network of the family; see the module's docstring for its stages."""

    def __init__(self, config: ResNetConfig, num_classes: int, in_channels: int = 3) -> None:
        """Build with He initialisation; `in_channels` is 3 (RGB) or 1 (grey)."""
        super().__init__()
        block = Bottleneck if config.bottleneck else BasicBlock
        channels = config.widths[0]
        self.conv1 = (
            conv3x3(in_channels, channels)
            if config.cifar
            else nn.Conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.Identity() if config.cifar else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for stage, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            layers = []
            for stride in strides:
                layers.append(block(channels, width, stride, config))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.stages = len(config.blocks)
        self.fc = nn.Linear(channels, num_classes)
        _initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the last convolutional map (N, C, h, w)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def classify(self, features: Tensor) -> Tensor:
        """The last convolutional map (N, C, h, w) -> logits (N, classes): global average pooling and `fc`."""
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> logits (N, classes)."""
        return self.classify(self.features(x))


def _initialise(network: nn.Module) -> None:
    """He initialisation (arXiv 1502.01852) of the convolutions; the other layers keep torch's own."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
