"""The same function, written so that onnxruntime's integer kernels run all of it fast.

Three things cost time in a quantised graph and change nothing in what it computes:

- A normalisation in float32 before the integers. The first convolution takes the pixels as they are, with the
  normalisation in its weights and its bias. What it finds around the image is the mean colour, which is 0 once
  normalised, as integers pad with a single value for all channels.
- Few channels. The first convolution reads blocks of 4 pixels of a row, 12 channels instead of 3, and writes the
  outputs of a block side by side. A row of pixels and a row of blocks are the same bytes: nothing is moved for it.
- There is no integer Pad, so option A's zero padding would leave and enter the integers again. A 1×1 convolution with
  weights 0 and 1 is the same shortcut.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model_export.architectures.resnet import ZeroPadShortcut
from model_export.graph import Normalisation, ServedNetwork
from service.artifact import Int8Target, Preprocessing

RGB = 3
# Pixels, a multiple of the stride. Of 2, 4 and 8 the fastest for 7×7 with stride 2, of 2 and 4 for 3×3.
BLOCK = 4


class PixelBlocks(nn.Module):
    """uint8 pixels `[N, H, W, 3]` in the mean colour's frame -> float32 `[N, 12, rows, blocks]`, less a centre.

    The frame has whole numbers as a picture has. What they lack to the mean is added in float32, where the whole
    function is exact; with the centre as zero point, rounding to uint8 gives the pixels and the frame again. Weights
    that are rounded later meet values on both sides of 0, and their errors do not add up.
    """

    side: Tensor
    edge: Tensor
    centre: Tensor
    lacking: Tensor

    def __init__(self, recipe: Preprocessing, padding: int, blocks: int) -> None:
        """A frame `padding` wide, and wider on the right, where it fills rows of so many blocks."""
        super().__init__()
        size, width = recipe.crop, blocks * BLOCK
        centre = _centre(recipe)
        mean = 255 * torch.tensor(recipe.mean, dtype=torch.float64)
        colour = centre + (mean - centre).round()  # a half goes where rounding will take it
        lacking = (mean - colour).expand(size + 2 * padding, width, RGB).clone()
        lacking[padding : padding + size, padding : padding + size] = 0
        self.padding = padding
        self.register_buffer("side", colour.to(torch.uint8).expand(1, size, width - size - padding, RGB).clone())
        self.register_buffer("edge", colour.to(torch.uint8).expand(1, padding, width, RGB).clone())
        self.register_buffer("centre", torch.tensor(float(centre)))
        self.register_buffer("lacking", self._in_blocks(lacking.float().unsqueeze(0)))

    def forward(self, images: Tensor) -> Tensor:
        """Frame, cut into blocks, float32."""
        count = images.shape[0]
        left, right, edge = (
            each.expand(count, -1, -1, -1) for each in (self.side[:, :, : self.padding], self.side, self.edge)
        )
        rows = torch.cat((left, images, right), dim=2)
        return self._in_blocks(torch.cat((edge, rows, edge), dim=1)).float() - self.centre + self.lacking

    @staticmethod
    def _in_blocks(pixels: Tensor) -> Tensor:
        return pixels.reshape(pixels.shape[0], pixels.shape[1], -1, BLOCK * RGB).permute(0, 3, 1, 2)


def _centre(recipe: Preprocessing) -> int:
    """The mean over the colours, in [1, 255]: of a subtraction of 0 the exporter leaves nothing to `quantise`."""
    return max(1, round(255 * sum(recipe.mean) / RGB))


class OutOfBlocks(nn.Module):
    """A map with the outputs of a block side by side, `[N, n C, h, blocks]` -> `[N, C, h, width]`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Nothing moves where channels come last, but for outputs beyond the width."""
        rows = x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], -1, self.channels)
        return rows.permute(0, 3, 1, 2)[..., : self.width]


def integer_form(network: nn.Module, recipe: Preprocessing, in_channels: int, target: Int8Target) -> ServedNetwork:
    """A network in evaluation mode with its normalisation, in the form above; the network itself is left as it is.

    Grey networks, those whose mean is no colour, and all for TensorRT, whose integers are signed, keep their
    normalisation and their first convolution.
    """
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, ZeroPadShortcut):
            network.set_submodule(name, _as_convolution(module))
    if in_channels == 1 or target == "tensorrt" or not all(0 <= mean <= 1 for mean in recipe.mean):
        return ServedNetwork(Normalisation(recipe, in_channels), network)
    return ServedNetwork(_read_in_blocks(network, recipe), network)


def _as_convolution(shortcut: ZeroPadShortcut) -> nn.Conv2d:
    channels = shortcut.in_channels
    convolution = nn.Conv2d(channels, channels + 2 * shortcut.padding, 1, stride=shortcut.stride, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[shortcut.padding : shortcut.padding + channels, :, 0, 0] = torch.eye(channels)
    return convolution


def _read_in_blocks(network: nn.Module, recipe: Preprocessing) -> PixelBlocks:
    """Exchange a network's first convolution for one of blocks, and give what makes them.

    In all networks here its batch normalisation is the next module, and then comes the pooling or an activation.
    """
    layers = iter([(name, each) for name, each in network.named_modules() if not list(each.children())])
    name, first = next((name, each) for name, each in layers if isinstance(each, nn.Conv2d))
    behind, following = next(layers)
    if isinstance(following, nn.BatchNorm2d):
        first = fuse_conv_bn_eval(first, following)
        network.set_submodule(behind, nn.Identity())
        behind, following = next(layers)
    (kernel, _), (stride, _), padding = first.kernel_size, first.stride, int(first.padding[0])
    width = (recipe.crop + 2 * padding - kernel) // stride + 1
    of_blocks = _of_blocks(first, recipe)
    network.set_submodule(name, of_blocks)
    # An activation runs fused with the convolution in front of it.
    out = OutOfBlocks(first.out_channels, width)
    both = (following, out) if isinstance(following, nn.ReLU) else (out, following)
    network.set_submodule(behind, nn.Sequential(*both))
    return PixelBlocks(recipe, padding, math.ceil(width * stride / BLOCK) + of_blocks.kernel_size[1] - 1)


def _of_blocks(first: nn.Conv2d, recipe: Preprocessing) -> nn.Conv2d:
    """A convolution of normalised RGB as one of blocks of pixels less the centre, without padding of its own."""
    (kernel, _), (stride, _) = first.kernel_size, first.stride
    blocks = math.ceil((BLOCK - stride + kernel) / BLOCK)
    weight = first.weight.detach().double() / torch.tensor(recipe.std, dtype=torch.float64).reshape(1, RGB, 1, 1)
    mean = torch.tensor(recipe.mean, dtype=torch.float64) - _centre(recipe) / 255
    bias = -weight.sum(dim=(2, 3)) @ mean
    if first.bias is not None:
        bias += first.bias.detach().double()
    outputs = [F.pad(weight, (at, blocks * BLOCK - kernel - at)) for at in range(0, BLOCK, stride)]
    wide = torch.cat(outputs).reshape(-1, RGB, kernel, blocks, BLOCK)
    wide = wide.permute(0, 4, 1, 2, 3).flatten(1, 2) / 255  # (outputs × out, 12, kernel, blocks)
    # onnxruntime gives a filter of zeros, as of a channel that was pruned, the scale 1, and its bias with it.
    wide[:, 0, 0, 0] += 1e-7 * bias.repeat(len(outputs)) * (wide == 0).all(dim=3).all(dim=2).all(dim=1)
    of_blocks = nn.Conv2d(BLOCK * RGB, len(wide), (kernel, blocks), stride=(stride, 1))
    of_blocks.load_state_dict({"weight": wide, "bias": bias.repeat(len(outputs))})
    return of_blocks
