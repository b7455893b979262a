"""Foreign names of tensors -> torchvision's, and the architecture that names and shapes tell.

Every rule here is documented with its source in docs/checkpoints.md. What would change the function without changing
the keys' fit is refused by name.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from model_export.architectures.resnet import ResNetConfig
from model_export.catalog import CIFAR_DEPTHS, IMAGENET, Architecture, find_architecture
from model_export.errors import ExportError
from model_export.files import State

# Keys that every network of a family has; what stands before them is a wrapper's attribute.
ANCHORS = ("layer1.0.conv1.weight", "features.0.weight", "resnet.embedder.embedder.convolution.weight")
# What training modules keep beside the network: losses and metrics, none of which the network computes with.
_TRAINING_ONLY = re.compile(r"(.*_)?(criterion|loss|loss_fn|metrics?|acc|accuracy|f1|auroc|class_weights?)(\.|_|$)")
_COMPILED = "_orig_mod."
_HF_STAGE = re.compile(r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)")
_HF_CONVOLUTION = re.compile(r"layer\.(\d+)\.(convolution|normalization)\.(.+)")
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.conv1\.weight")
_HEAD = re.compile(r"(fc|classifier\.6)\.(\d+)\.(weight|bias)")


def to_torchvision_names(state: State, notes: list[str]) -> State:
    """Strip wrappers' prefixes, translate Hugging Face's and CIFAR repositories' names, fold a head of one layer.

    Args:
        state: tensors under any of the known names.
        notes: gets a line for everything that was left out.

    Raises:
        ExportError: several networks in one file, or a head of several layers.
    """
    state = _renamed(state, {key: key.replace(_COMPILED, "") for key in state})
    state = _strip_prefix(state, notes)
    state = _renamed(state, {key: _translate(key) for key in state})
    return _fold_head(state)


def _renamed(state: State, names: dict[str, str]) -> State:
    """The tensors under their new names; two that end up under one are refused, not overwritten."""
    renamed: dict[str, str] = {}
    for key, name in names.items():
        if name in renamed:
            raise ExportError(f"{renamed[name]} and {key} are both {name}: the file holds more than one such layer")
        renamed[name] = key
    return {name: state[key] for name, key in renamed.items()}


def refuse_variants(state: State) -> None:
    """Refuse, by name, networks that look like a ResNet and compute something else.

    Raises:
        ExportError: the variant and the key that shows it.
    """
    for key, value in state.items():
        variant = _variant(key, value.ndim, state)
        if variant:
            raise ExportError(f"the checkpoint has {variant} ({key}): that is not a network of the paper")


def infer_architecture(state: State) -> Architecture:
    """The architecture that the keys and shapes show, with what they cannot show at torchvision's default.

    Raises:
        ExportError: it is none of the catalogue.
    """
    if "features.0.weight" in state:
        return _infer_vgg(state)
    stem = state.get("conv1.weight")
    blocks = _blocks(state)
    if stem is None or stem.ndim != 4 or not blocks:
        raise ExportError(f"the keys are those of no ResNet, plain network or VGG: {some(state)}")
    bottleneck = "layer1.0.conv3.weight" in state
    infer = _infer_imagenet if stem.shape[-1] == 7 else _infer_cifar
    return _with_option(infer(bottleneck, blocks), state, sum(blocks))


def agree(stated: Architecture, inferred: Architecture) -> bool:
    """Whether two architectures have the same tensors: they may differ in stride or plainness, which have none."""
    if stated.config is None or inferred.config is None:
        return stated.name == inferred.name
    return _visible(stated.config) == _visible(inferred.config)


def _visible(config: ResNetConfig) -> ResNetConfig:
    shortcut = "A" if config.shortcut == "plain" else config.shortcut
    return replace(config, shortcut=shortcut, stride_on_1x1=False)


def _strip_prefix(state: State, notes: list[str]) -> State:
    prefixes = {key.removesuffix(anchor) for key in state for anchor in ANCHORS if key.endswith(anchor)}
    if len(prefixes) > 1:
        found = ", ".join(sorted(prefix or "(none)" for prefix in prefixes))
        raise ExportError(f"the file holds several networks, under {found}: save the state dict of one of them")
    prefix = prefixes.pop() if prefixes else ""
    names = {key: key.removeprefix(prefix) for key in state}
    dropped = [key for key, name in names.items() if _TRAINING_ONLY.match(name)]
    if dropped:
        notes.append(f"left out what only training uses: {some(dropped)}")
    return _renamed(state, {key: name for key, name in names.items() if key not in dropped})


def _translate(key: str) -> str:
    """One key's name in torchvision: from Hugging Face's modeling_resnet.py, or from CIFAR repositories."""
    key = key.replace("resnet.embedder.embedder.convolution.", "conv1.")
    key = key.replace("resnet.embedder.embedder.normalization.", "bn1.")
    key = re.sub(r"^classifier\.1\.(weight|bias)$", r"fc.\1", key)
    key = re.sub(r"^linear\.", "fc.", key)
    key = re.sub(r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.", key)
    stage = _HF_STAGE.fullmatch(key)
    return _translate_hf(int(stage[1]) + 1, stage[2], stage[3]) if stage else key


def _translate_hf(stage: int, block: str, rest: str) -> str:
    prefix = f"layer{stage}.{block}."
    convolution = _HF_CONVOLUTION.fullmatch(rest)
    if convolution:
        kind = "conv" if convolution[2] == "convolution" else "bn"
        return f"{prefix}{kind}{int(convolution[1]) + 1}.{convolution[3]}"
    rest = rest.replace("shortcut.convolution.", "downsample.0.").replace("shortcut.normalization.", "downsample.1.")
    return prefix + rest


def _fold_head(state: State) -> State:
    """A head `fc = Sequential(Dropout, Linear, …)` with one linear layer is that layer."""
    positions = {match[2] for key in state if (match := _HEAD.fullmatch(key))}
    if len(positions) > 1:
        raise ExportError(
            f"the head has several layers (fc.{', fc.'.join(sorted(positions))}): one Linear can be served"
        )
    return _renamed(state, {key: _HEAD.sub(r"\1.\3", key) for key in state})


def _variant(key: str, dimensions: int, state: State) -> str | None:
    if re.fullmatch(r"conv1\.\d\.weight", key):
        return "a stem of several convolutions, as timm's c, d, s and t variants"
    if ".se." in key:
        return "squeeze-and-excitation"
    if key.endswith("downsample.1.weight") and dimensions == 4:
        return "average pooling in its shortcuts, as timm's d variants"
    if key == "bn1.weight" and "bn1.running_mean" not in state:
        return "group normalisation in place of batch normalisation"
    if re.search(r"\.(aa|attn|drop_block)\.", key):
        return "anti-aliasing or attention"
    return None


def _blocks(state: State) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for key in state:
        if match := _BLOCK.fullmatch(key):
            found[int(match[1])] = found.get(int(match[1]), 0) + 1
    return tuple(found[stage] for stage in sorted(found))


def _infer_vgg(state: State) -> Architecture:
    convolutions = [key for key, value in state.items() if key.startswith("features.") and value.ndim == 4]
    if len(convolutions) != 16:
        raise ExportError(f"the checkpoint is a VGG of {len(convolutions)} convolutions; VGG-19 has 16")
    return find_architecture("vgg19_bn" if "features.1.running_mean" in state else "vgg19")


def _infer_imagenet(bottleneck: bool, blocks: tuple[int, ...]) -> str:
    for depth, (has_bottleneck, stages) in IMAGENET.items():
        if (has_bottleneck, stages) == (bottleneck, blocks):
            return f"resnet{depth}"
    kind = "bottleneck" if bottleneck else "basic"
    raise ExportError(f"the checkpoint has stages of {blocks} {kind} blocks: that is no network of table 1")


def _infer_cifar(bottleneck: bool, blocks: tuple[int, ...]) -> str:
    if bottleneck or len(blocks) != 3 or len(set(blocks)) != 1:
        raise ExportError(f"the checkpoint has a 3×3 stem and stages of {blocks} blocks: that is no CIFAR network")
    depth = 6 * blocks[0] + 2
    return f"resnet{depth}" if depth in CIFAR_DEPTHS else f"cifar-resnet{depth}"


def _with_option(name: str, state: State, blocks: int) -> Architecture:
    projections = sum(key.endswith("downsample.0.weight") for key in state)
    option = "-c" if projections == blocks else "-b" if projections else "-a"
    explicit = find_architecture(name + option)
    default = find_architecture(name)
    return default if default.config == explicit.config else explicit


def some(keys: Iterable[str]) -> str:
    """The first three keys of a list, and how many more."""
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
