"""The card's `structure`: the layers, blocks and shortcuts of a network, read off the module itself."""

from itertools import groupby

from torch import nn

from model_export.architectures.resnet import Block, ResNet, ZeroPadShortcut
from model_export.catalog import Architecture
from model_export.describe import Stage, Task, describe
from service.artifact import BlocksRecord, LayerRecord, Shortcut, StageRecord, Structure

AVERAGE = LayerRecord(kind="avg_pool")


def structure_of(architecture: Architecture, task: Task) -> Structure:
    """What the network of an architecture consists of when it is built for a task."""
    network = architecture.build_empty(task.classes, task.in_channels)
    description = describe(architecture, task)
    blocks = _resnet(network) if isinstance(network, ResNet) else _vgg(network)
    option = architecture.config.shortcut if architecture.config else "plain"
    return Structure(
        option=None if option == "plain" else option,
        stages=tuple(_stage(stage, blocks[stage.name]) for stage in description.stages),
        weight_layers=description.weight_layers,
        parameters=description.parameters,
        multiply_adds=description.multiply_adds,
    )


def _stage(stage: Stage, blocks: list[BlocksRecord]) -> StageRecord:
    channels, height, width = stage.output if len(stage.output) == 3 else (*stage.output, 1, 1)
    return StageRecord(name=stage.name, blocks=_folded(blocks), output=(channels, height, width))


def _folded(blocks: list[BlocksRecord]) -> tuple[BlocksRecord, ...]:
    """Equal neighbours as one record with their count."""
    return tuple(block.model_copy(update={"count": len(list(run))}) for block, run in groupby(blocks))


def _resnet(network: ResNet) -> dict[str, list[BlocksRecord]]:
    stem = [*_layers(network.conv1), *_layers(network.maxpool)]
    found = {"conv1": [_plain(stem)], "fc": [_plain([AVERAGE, *_layers(network.fc)])]}
    for number in range(1, network.stages + 1):
        stage = network.get_submodule(f"layer{number}")
        blocks = (each for each in stage.children() if isinstance(each, Block))
        found[f"layer{number}"] = [_block(each) for each in blocks]
    return found


def _vgg(network: nn.Module) -> dict[str, list[BlocksRecord]]:
    """Five stages that end in a pooling each, and the classifier with its three layers."""
    found: dict[str, list[BlocksRecord]] = {}
    current: list[LayerRecord] = []
    for layer in _layers(network.get_submodule("features")):
        current.append(layer)
        if layer.kind == "max_pool":
            found[f"conv{len(found) + 1}"] = [_plain(current)]
            current = []
    return found | {"classifier": [_plain(_layers(network.get_submodule("classifier")))]}


def _block(block: Block) -> BlocksRecord:
    layers = [each for name, child in block.named_children() if name != "downsample" for each in _layers(child)]
    return BlocksRecord(count=1, layers=tuple(layers), shortcut=_shortcut(block))


def _shortcut(block: Block) -> Shortcut | None:
    match block.downsample:
        case None:
            return None
        case nn.Identity():
            return "identity"
        case ZeroPadShortcut():
            return "zero_padding"
        case _:
            return "projection"


def _plain(layers: list[LayerRecord]) -> BlocksRecord:
    return BlocksRecord(count=1, layers=tuple(layers))


def _layers(module: nn.Module) -> list[LayerRecord]:
    """The convolutions, poolings and fully connected layers in a module, in order."""
    found = []
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            record = LayerRecord(
                kind="conv", kernel=each.kernel_size[0], channels=each.out_channels, stride=each.stride[0]
            )
        elif isinstance(each, nn.MaxPool2d):
            record = LayerRecord(kind="max_pool", kernel=_side(each.kernel_size), stride=_side(each.stride))
        elif isinstance(each, nn.Linear):
            record = LayerRecord(kind="fc", channels=each.out_features)
        else:
            continue
        found.append(record)
    return found


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]
