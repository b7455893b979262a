"""The module that is exported: uint8 pixels in, normalisation and layout change inside, logits and features out.

With the arithmetic in the graph the server sends a quarter of the bytes and cannot normalise differently.
"""

import logging
import warnings
from typing import Protocol, runtime_checkable

import onnx
import torch
from torch import Tensor, nn

from model_export.errors import ExportError
from service.artifact import FEATURES_NAME, INPUT_NAME, LOGITS_NAME, Preprocessing

# What torch 2.13's exporter writes without converting afterwards.
OPSET = 18
# A traced batch of 1 would be taken for a constant (pytorch#157621).
TRACED_BATCH = 2
# Pillow's convert("L"): (19595 R + 38470 G + 7471 B + 2¹⁵) >> 16. The sum stays below 2²⁴, so float32 is exact.
LUMA = (19595.0, 38470.0, 7471.0)


@runtime_checkable
class PooledClassifier(Protocol):
    """A network that ends in global average pooling: the last convolutional map, and the logits from it."""

    def features(self, x: Tensor) -> Tensor: ...

    def classify(self, features: Tensor) -> Tensor: ...


class Normalisation(nn.Module):
    """uint8 pixels `[N, H, W, 3]` -> the network's input `[N, in_channels, H, W]`, float32."""

    scale: Tensor
    shift: Tensor
    luma: Tensor

    def __init__(self, recipe: Preprocessing, in_channels: int) -> None:
        super().__init__()
        self.grey = in_channels == 1
        std = torch.tensor(recipe.std[:in_channels], dtype=torch.float64)
        mean = torch.tensor(recipe.mean[:in_channels], dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float().reshape(1, -1, 1, 1))
        self.register_buffer("shift", (-mean / std).float().reshape(1, -1, 1, 1))
        self.register_buffer("luma", torch.tensor(LUMA).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(x / 255 - mean) / std as one multiplication and one addition."""
        x = images.permute(0, 3, 1, 2).float()  # (N, 3, H, W) in [0, 255]
        if self.grey:
            x = torch.floor(((x * self.luma).sum(dim=1, keepdim=True) + 32768) / 65536)  # (N, 1, H, W)
        return x * self.scale + self.shift


class ServedNetwork(nn.Module):
    """A network with its normalisation: uint8 `[N, H, W, 3]` -> logits `[N, classes]`, and features where there are."""

    def __init__(self, normalisation: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalisation = normalisation
        self.network = network

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise, then classify."""
        x = self.normalisation(images)
        if isinstance(self.network, PooledClassifier):
            features = self.network.features(x)
            return self.network.classify(features), features
        logits: Tensor = self.network(x)
        return logits


def served(network: nn.Module, recipe: Preprocessing, in_channels: int = 3) -> ServedNetwork:
    """A network with its normalisation, as trained."""
    return ServedNetwork(Normalisation(recipe, in_channels), network)


def export(model: ServedNetwork, size: int) -> onnx.ModelProto:
    """The ONNX graph of a served network in evaluation mode, for images of `size` pixels a side, checked.

    Raises:
        ExportError: the exporter wrote another opset or a fixed batch, or the checker refuses the graph.
    """
    outputs = [LOGITS_NAME, FEATURES_NAME] if isinstance(model.network, PooledClassifier) else [LOGITS_NAME]
    example = torch.zeros(TRACED_BATCH, size, size, 3, dtype=torch.uint8)
    # The exporter's own deprecations and its missing optional packages are not for the person at the command line.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=outputs,
            dynamic_shapes={"images": {0: "batch"}},
        )
    if program is None:
        raise ExportError("the exporter gave no graph: report this with the architecture's name")
    check_graph(program.model_proto)
    return program.model_proto


def check_graph(model: onnx.ModelProto) -> None:
    """Refuse a graph that is not what was asked for, or that the ONNX checker finds fault with.

    Raises:
        ExportError: what is wrong.
    """
    opsets = {each.domain: each.version for each in model.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(f"the graph has opsets {opsets} instead of {OPSET}: the installed torch or onnxscript differ")
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise ExportError(f"the graph has a fixed batch of {batch.dim_value} instead of a dynamic one")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX checker refuses the graph: {str(error).splitlines()[0]}") from error
