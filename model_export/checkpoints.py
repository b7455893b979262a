"""SOURCE -> a checkpoint: a network of the catalogue with its weights, labels and preprocessing.

    locate -> read -> what it says -> torchvision's names -> architecture -> labels, preprocessing

What the file says, what its keys show and what the command line states must agree; a contradiction is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model_export.catalog import Architecture, find_architecture
from model_export.errors import ExportError
from model_export.files import State, read_contents
from model_export.hubs import locate
from model_export.keys import agree, infer_architecture, refuse_variants, some, to_torchvision_names
from model_export.recipes import Said, what_it_says
from service.artifact import Accuracy, Preprocessing, Source

COUNTER = "num_batches_tracked"
MIN_INPUT = 32
PRESET_CHOICE = (
    "give --preset imagenet-v1 (resize 256, crop 224: torchvision's first weights and most training loops), "
    "imagenet-v2 (resize 232: torchvision's V2 weights), imagenet-timm (resize 235, bicubic: timm's a1 family), "
    "cifar10, cifar100, digits, or a JSON file with the fields of the card's preprocessing"
)


@dataclass(frozen=True)
class Given:
    """What the person at the command line says of a checkpoint."""

    architecture: str | None = None
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    ema: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and all that serving it needs to know. `notes` are lines for the person who converts it."""

    architecture: Architecture
    state: Mapping[str, Tensor]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    accuracy: Accuracy | None
    source: Source
    in_channels: int
    said: Said
    notes: list[str] = field(default_factory=list)

    def build(self) -> nn.Module:
        """The network with these weights, in evaluation mode."""
        network = self.architecture.build(len(self.labels), self.in_channels)
        # Very old files have no num_batches_tracked; evaluation does not use it.
        counters = {key: value for key, value in network.state_dict().items() if key.endswith(COUNTER)}
        network.load_state_dict(counters | dict(self.state))
        return network.eval()


def read_checkpoint(source: str, given: Given) -> Checkpoint:
    """Read a SOURCE of the command line.

    Raises:
        ExportError: it is missing, damaged, a variant, contradictory, or not described well enough.
    """
    contents = read_contents(locate(source), ema=given.ema)
    said = what_it_says(contents, recipe_needed=given.preprocessing is None)
    state = to_torchvision_names(contents.state, contents.notes)
    refuse_variants(state)
    architecture = _architecture(given, said, state, contents.notes)
    classes, in_channels = _ends(state)
    _check_state(architecture.build_empty(classes, in_channels).state_dict(), state, architecture.name)
    _check_values(state)
    preprocessing = given.preprocessing or said.preprocessing
    if preprocessing is None:
        raise ExportError(f"the checkpoint does not say how its images are prepared: {PRESET_CHOICE}")
    _check_input(preprocessing, in_channels)
    return Checkpoint(
        architecture=architecture,
        state=state,
        labels=_labels(given, said, classes),
        preprocessing=preprocessing,
        accuracy=said.accuracy,
        source=Source(format=said.origin, sha256=contents.sha256, overridden=_overridden(given, said)),
        in_channels=in_channels,
        said=said,
        notes=contents.notes,
    )


def read_labels(path: Path) -> tuple[str, ...]:
    """Labels by class index: a text file with one a line, or JSON, a list or an object `{"0": label, …}`.

    Raises:
        ExportError: the file cannot be read, or a label is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        labels = _json_labels(json.loads(text)) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
        "".join(labels).encode()  # JSON can write half a character
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ExportError(f"cannot read the labels in {path}: {error}") from error
    stripped = tuple(label.strip() for label in labels)
    if not stripped or not all(stripped):
        raise ExportError(f"{path} must have one label a line, without empty lines")
    return stripped


def _json_labels(content: Any) -> list[str]:
    if isinstance(content, dict) and all(isinstance(value, int) for value in content.values()):
        content = {str(index): label for label, index in content.items()}  # ImageFolder's class_to_idx
    values = [content[str(index)] for index in range(len(content))] if isinstance(content, dict) else content
    # ImageNet's class index has pairs of a WordNet id and a name.
    return [str(value[-1] if isinstance(value, list) else value) for value in values]


def _architecture(given: Given, said: Said, state: State, notes: list[str]) -> Architecture:
    inferred = infer_architecture(state)
    for who, name in (("--arch", given.architecture), ("the source", said.architecture)):
        if name and not agree(find_architecture(name), inferred):
            raise ExportError(f"{who} says {name}, but the keys and shapes are those of {inferred.name}")
    own = said.architecture or _own_stride(said, inferred)
    if given.architecture and own and find_architecture(given.architecture).config != find_architecture(own).config:
        raise ExportError(f"--arch says {given.architecture}, but the source says {own}")
    stated = given.architecture or own
    if stated:
        return find_architecture(stated)
    notes.append(f"architecture {inferred.name}, from the keys and shapes{_assumption(inferred)}")
    return inferred


def _own_stride(said: Said, inferred: Architecture) -> str | None:
    """Hugging Face's config says which of the two strides a bottleneck has; basic blocks have no choice."""
    if said.stride_on_1x1 is None or inferred.config is None or not inferred.config.bottleneck:
        return None
    return f"{inferred.name}-v1" if said.stride_on_1x1 else inferred.name


def _assumption(inferred: Architecture) -> str:
    """What the keys cannot show, and how to say otherwise."""
    config = inferred.config
    if config is not None and config.bottleneck:
        return f" (stride on the 3×3 as in torchvision; --arch {inferred.name}-v1 for the paper's)"
    if config is not None and config.shortcut == "A":
        plain = inferred.name.replace("resnet", "plain").removesuffix("-a")
        return f" (--arch {plain} if it was trained without shortcuts)"
    return ""


def _ends(state: State) -> tuple[int, int]:
    """The number of classes and of input channels, from the shapes of the last and the first layer."""
    head = state.get("fc.weight", state.get("classifier.6.weight"))
    first = state.get("conv1.weight", state.get("features.0.weight"))
    if head is None or first is None:
        raise ExportError("the checkpoint has no last layer (fc or classifier.6): it is a backbone and no classifier")
    channels = first.shape[1]
    if head.shape[0] < 2:
        raise ExportError("the last layer gives one logit: train with two classes, softmax of one is always 1")
    if channels not in (1, 3):
        raise ExportError(f"the first layer takes {channels} channels: only RGB and grey images can be served")
    return head.shape[0], channels


def _labels(given: Given, said: Said, classes: int) -> tuple[str, ...]:
    labels = given.labels or said.labels
    if labels is None:
        raise ExportError(f"the checkpoint does not name its {classes} classes: give --labels, one label a line")
    if len(labels) != classes:
        raise ExportError(f"there are {len(labels)} labels, but the checkpoint has {classes} classes: correct --labels")
    return labels


def _overridden(given: Given, said: Said) -> tuple[str, ...]:
    """What the command line states against the source's own word."""
    pairs = {"labels": (given.labels, said.labels), "preprocessing": (given.preprocessing, said.preprocessing)}
    return tuple(what for what, (stated, own) in pairs.items() if stated and own and stated != own)


def _check_input(preprocessing: Preprocessing, in_channels: int) -> None:
    if preprocessing.crop < MIN_INPUT:
        raise ExportError(f"the input would be {preprocessing.crop} pixels wide: at least {MIN_INPUT} are needed")
    if in_channels == 1 and (len(set(preprocessing.mean)) > 1 or len(set(preprocessing.std)) > 1):
        raise ExportError("a network for grey images needs the same mean and std three times: give --preset FILE.json")


def _check_values(state: State) -> None:
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ExportError(f"NaN or infinite values in {some(bad)}: the training has diverged, convert an earlier one")


def _check_state(expected: Mapping[str, Tensor], state: State, name: str) -> None:
    missing = [key for key in expected if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    for what, keys in (("has no", missing), ("has unknown", unexpected), ("has", shapes)):
        if keys:
            raise ExportError(f"the checkpoint is no {name}: it {what} {some(keys)}; is it whole, and is --arch right?")
