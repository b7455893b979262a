"""What a network consists of, stage by stage, counted from the module itself while an image runs through it.

Multiply-adds are those of convolutions and fully connected layers, as the paper counts FLOPs; batch normalisation,
pooling and activations are left out. Weight layers are counted as the paper counts them: projections in shortcuts are
no layers.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_export.architectures.resnet import BasicBlock, Block, Bottleneck, ResNetConfig
from model_export.catalog import Architecture
from model_export.shapes import ShapesOnly

SHORTCUT = "downsample"
# The paper's comparison (section 4.1, figure 5): both blocks on 256 channels.
COMPARED_CHANNELS = 256


@dataclass
class Stage:
    """One stage's row: `output` is (channels, height, width); `block` names the kernels of one block."""

    name: str
    output: tuple[int, ...]
    block: list[str]
    repeats: int
    weight_layers: int
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Description:
    """An architecture with all its stages, and the paper's figures where it states any."""

    name: str
    input_size: int
    classes: int
    stages: list[Stage]
    weight_layers: int
    parameters: int
    multiply_adds: int
    paper: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The description as JSON values, with the differences from the paper."""
        return asdict(self) | {"difference_from_paper": self.differences()}

    def differences(self) -> dict[str, float]:
        """counted / paper - 1, for each figure that the paper states."""
        counted = {"multiply_adds": self.multiply_adds, "parameters": self.parameters, "depth": self.weight_layers}
        return {
            figure: counted[figure] / stated - 1
            for figure, stated in self.paper.items()
            if figure in counted and stated is not None
        }


@dataclass(frozen=True)
class Task:
    """What a network is built for: classes, input pixels a side, and 3 (RGB) or 1 (grey) input channels."""

    classes: int
    input_size: int
    in_channels: int = 3


def describe(architecture: Architecture, task: Task | None = None) -> Description:
    """Count an architecture for a task; the paper's, at the architecture's own input size, when absent."""
    task = task or Task(architecture.classes, architecture.input_size)
    network = architecture.build_empty(task.classes, task.in_channels).eval()
    counts = _count(network, task)
    stages = [_stage(name, children, counts) for name, children in _stages(network)]
    return Description(
        name=architecture.name,
        input_size=task.input_size,
        classes=task.classes,
        stages=stages,
        weight_layers=sum(stage.weight_layers for stage in stages),
        parameters=sum(each.numel() for each in network.parameters()),
        multiply_adds=sum(stage.multiply_adds for stage in stages),
        paper={
            "depth": architecture.depth,
            "multiply_adds": architecture.paper.multiply_adds,
            "parameters": architecture.paper.parameters,
            "errors": architecture.paper.errors,
        },
    )


def compare_blocks() -> dict[str, int]:
    """Weights of the two kinds of block on 256 channels: two 3×3, against 1×1 + 3×3 + 1×1."""
    config = ResNetConfig(False, (), (), "plain")
    basic = BasicBlock(COMPARED_CHANNELS, COMPARED_CHANNELS, 1, config)
    bottleneck = Bottleneck(COMPARED_CHANNELS, COMPARED_CHANNELS // Bottleneck.expansion, 1, config)
    return {
        "3×3 + 3×3": _convolution_weights(basic),
        "1×1 + 3×3 + 1×1": _convolution_weights(bottleneck),
    }


def _convolution_weights(block: nn.Module) -> int:
    return sum(each.weight.numel() for each in block.modules() if isinstance(each, nn.Conv2d))


@dataclass
class _Count:
    """What a forward pass shows of one leaf module."""

    module: nn.Module
    output: tuple[int, ...]
    multiply_adds: int


def _count(network: nn.Module, task: Task) -> dict[str, _Count]:
    counts: dict[str, _Count] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def record(_: nn.Module, __: Any, output: Tensor) -> None:
            counts[name] = _Count(module, tuple(output.shape[1:]), _multiply_adds(module, output))

        return module.register_forward_hook(record)

    hooks = [watch(name, module) for name, module in network.named_modules() if not list(module.children())]
    with torch.inference_mode(), ShapesOnly():
        network(torch.zeros(1, task.in_channels, task.input_size, task.input_size, device="meta"))
    for hook in hooks:
        hook.remove()
    return counts


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        return output[0].numel() * module.weight[0].numel()
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


def _stages(network: nn.Module) -> list[tuple[str, dict[str, nn.Module]]]:
    """The rows of the table: top-level modules with weights; VGG's features are cut after each pooling."""
    rows: list[tuple[str, dict[str, nn.Module]]] = []
    for name, child in network.named_children():
        if name == "bn1":
            rows[-1][1][name] = child
        elif name == "features":
            rows += _vgg_stages(child)
        elif list(child.parameters()):
            rows.append((name, {name: child}))
    return rows


def _vgg_stages(features: nn.Module) -> list[tuple[str, dict[str, nn.Module]]]:
    rows: list[tuple[str, dict[str, nn.Module]]] = []
    current: dict[str, nn.Module] = {}
    for name, module in features.named_children():
        current[f"features.{name}"] = module
        if isinstance(module, nn.MaxPool2d):
            rows.append((f"conv{len(rows) + 1}", current))
            current = {}
    return rows


def _stage(name: str, children: dict[str, nn.Module], counts: dict[str, _Count]) -> Stage:
    seen = {
        leaf: count
        for leaf, count in counts.items()
        if any(leaf == child or leaf.startswith(f"{child}.") for child in children)
    }
    layers = {
        leaf: count
        for leaf, count in seen.items()
        if isinstance(count.module, nn.Conv2d | nn.Linear) and SHORTCUT not in leaf
    }
    blocks = [child for child in next(iter(children.values())).children() if isinstance(child, Block)]
    kernels = [_kernel(count.module) for count in layers.values()]
    return Stage(
        name=name,
        output=list(layers.values())[-1].output,
        block=kernels[: len(kernels) // len(blocks)] if blocks else kernels,
        repeats=len(blocks) or 1,
        weight_layers=len(layers),
        parameters=sum(each.numel() for child in children.values() for each in child.parameters()),
        multiply_adds=sum(count.multiply_adds for count in seen.values()),
    )


def _kernel(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return f"{module.kernel_size[0]}×{module.kernel_size[1]}, {module.out_channels}"
    assert isinstance(module, nn.Linear)  # noqa: S101  _stage picks these two kinds
    return f"{module.out_features}-d fc"
