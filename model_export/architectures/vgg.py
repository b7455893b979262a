"""VGG-19 (Simonyan and Zisserman, arXiv 1409.1556, configuration E), which the residual paper compares with.

Sixteen 3×3 convolutions in five stages of 64, 128, 256, 512 and 512 channels, each ended by max pooling, then three
fully connected layers. It does not end in global average pooling, so no feature map explains its logits.
The modules are numbered as torchvision numbers them.
"""

from torch import Tensor, nn

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
POOLED = 7
HIDDEN = 4096


class VGG19(nn.Module):
    """VGG-19, with or without batch normalisation."""

    def __init__(self, num_classes: int, in_channels: int = 3, *, batch_norm: bool = False) -> None:
        """Build with He initialisation of the convolutions; `in_channels` is 3 (RGB) or 1 (grey)."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width, convolutions in STAGES:
            for _ in range(convolutions):
                layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED)
        self.classifier = nn.Sequential(
            nn.Linear(channels * POOLED * POOLED, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(HIDDEN, num_classes),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> logits (N, classes)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits
