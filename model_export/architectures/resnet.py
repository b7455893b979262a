"""Residual networks for CIFAR-sized images: He et al., *Deep Residual Learning* (arXiv 1512.03385), section 4.2.

    depth 6n + 2      output     layers
    conv1             32 × 32    3×3, 16 filters
    layer1            32 × 32    n blocks of two 3×3, 16 filters
    layer2            16 × 16    n blocks of two 3×3, 32 filters, first stride 2
    layer3             8 × 8     n blocks of two 3×3, 64 filters, first stride 2
    fc                 1 × 1     global average pooling, fully connected

    name        n    parameters (10 classes)    paper, table 6
    ResNet-20   3                    269,722             0.27M
    ResNet-32   5                    464,154             0.46M
    ResNet-44   7                    658,586             0.66M
    ResNet-56   9                    853,018             0.85M
    ResNet-110 18                  1,727,962             1.7M

The shortcuts are option A in all cases: identity, with zeros for the new channels, so they have no parameters.
The names of the modules are torchvision's, so that checkpoints keep their keys.
"""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size at stride 1; batch normalisation follows, so it has no bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class ZeroPadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the channels that are new, half before and half after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + 2 padding, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and the shortcut around them (figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.downsample = ZeroPadShortcut(in_channels, out_channels, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self.downsample(x))


class CifarResNet(nn.Module):
    """A residual network of depth 6n + 2 for images of 32 × 32."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        """Build with He initialisation; ValueError when `depth` is not 6n + 2."""
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if remainder or blocks < 1:
            raise ValueError(f"depth {depth} is not 6n + 2")
        self.conv1 = conv3x3(3, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks, stride=2)
        self.fc = nn.Linear(WIDTHS[2], num_classes)
        _initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, 32, 32) -> the last convolutional map (N, 64, 8, 8)."""
        x = F.relu(self.bn1(self.conv1(x)))
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features

    def classify(self, features: Tensor) -> Tensor:
        """The last convolutional map (N, 64, 8, 8) -> logits (N, classes): global average pooling and `fc`."""
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, 32, 32) -> logits (N, classes)."""
        return self.classify(self.features(x))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def _initialise(network: nn.Module) -> None:
    """He initialisation (arXiv 1502.01852) of the convolutions; the other layers keep torch's own."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
