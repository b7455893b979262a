"""SOURCE -> a checkpoint: weights, architecture, labels, preprocessing. Nothing in a file is ever executed.

A safetensors file that `resnet-export train` wrote describes itself in its metadata. Any other state dict needs
`--arch`, `--preset` and `--labels`; torch files are read with `weights_only=True`.
"""

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model_export.catalog import Architecture, find_architecture
from model_export.errors import ExportError
from service.artifact import Accuracy, Preprocessing, Source, first_problem

BUILTIN = "builtin:"
DESCRIPTION_KEY = "resnet_service"
SAFETENSORS_SUFFIX = ".safetensors"
COUNTER = "num_batches_tracked"
WRAPPERS = ("state_dict", "model_state_dict", "model")


class Description(BaseModel):
    """What a checkpoint that was trained here says of itself, in its safetensors metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    accuracy: Accuracy | None = None
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Given:
    """What the person at the command line says of a checkpoint; it wins over what the file says of itself."""

    architecture: str | None = None
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and all that serving it needs to know."""

    architecture: Architecture
    state: Mapping[str, Tensor]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    accuracy: Accuracy | None
    source: Source

    def build(self) -> nn.Module:
        """The network with these weights, in evaluation mode.

        Raises:
            ExportError: keys or shapes do not fit the architecture; nothing is loaded in part.
        """
        network = self.architecture.build(len(self.labels))
        fresh = network.state_dict()
        _check_state(fresh, self.state, self.architecture.name)
        # Very old files have no num_batches_tracked; evaluation does not use it.
        counters = {key: value for key, value in fresh.items() if key.endswith(COUNTER)}
        network.load_state_dict(counters | dict(self.state))
        return network.eval()


def builtin_names() -> list[str]:
    """The checkpoints that ship in the package."""
    folder = files("model_export") / "builtin"
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("_"))


def read_checkpoint(source: str, given: Given) -> Checkpoint:
    """Read a SOURCE of the command line.

    Raises:
        ExportError: it is missing, damaged, not a state dict, or not described well enough.
    """
    path = _locate(source)
    if not path.is_file():
        raise ExportError(f"{source} is not a file; SOURCE is a checkpoint file or {BUILTIN}NAME")
    description, state, file_format = _read(path)
    architecture = find_architecture(_needed(given.architecture, description, "architecture", "--arch"))
    preprocessing = _needed(given.preprocessing, description, "preprocessing", "--preset")
    labels = _needed(given.labels, description, "labels", "--labels")
    _check_labels(labels, state)
    _check_values(state)
    return Checkpoint(
        architecture=architecture,
        state=state,
        labels=labels,
        preprocessing=preprocessing,
        accuracy=description.accuracy if description else None,
        source=Source(format=file_format, sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
    )


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line, by class index.

    Raises:
        ExportError: the file cannot be read, or has no or an empty line.
    """
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"cannot read the labels in {path}: {error}") from error
    if not labels or not all(labels):
        raise ExportError(f"{path} must have one label a line, without empty lines")
    return labels


def _locate(source: str) -> Path:
    if not source.startswith(BUILTIN):
        return Path(source)
    name = source.removeprefix(BUILTIN)
    if name not in builtin_names():
        raise ExportError(
            f"unknown checkpoint {source}: choose {', '.join(BUILTIN + each for each in builtin_names())}"
        )
    return Path(str(files("model_export") / "builtin" / name / f"model{SAFETENSORS_SUFFIX}"))


def _needed(said: Any, description: Description | None, field: str, option: str) -> Any:
    value = said or (getattr(description, field) if description else None)
    if not value:
        raise ExportError(f"the checkpoint does not say its {field}: give {option}")
    return value


def _read(path: Path) -> tuple[Description | None, dict[str, Tensor], str]:
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file is an 8-byte header length and a JSON object; the name of the file says nothing.
    if head[8:] == b"{":
        return _read_safetensors(path)
    return None, _read_torch(path), "torch"


def _read_safetensors(path: Path) -> tuple[Description | None, dict[str, Tensor], str]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ExportError(f"{path} is a damaged safetensors file: {error}") from error
    if DESCRIPTION_KEY not in metadata:
        return None, state, "safetensors"
    try:
        return Description.model_validate_json(metadata[DESCRIPTION_KEY]), state, "resnet-service"
    except ValidationError as error:
        raise ExportError(f"{path} describes itself in a form that is not known: {first_problem(error)}") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters ends in an exception
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{path} holds more than tensors, and loading it could run code: save it again with "
            "torch.save(model.state_dict(), …) where it was trained"
        ) from error
    except Exception as error:  # the unpickler stumbles over damaged files with whatever is at hand
        raise ExportError(f"{path} is damaged, or neither a torch checkpoint nor a safetensors file") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise ExportError(f"{path} holds no state dict: save it again with torch.save(model.state_dict(), …)")
    return dict(content)


def _check_labels(labels: tuple[str, ...], state: Mapping[str, Tensor]) -> None:
    classes = len(state["fc.bias"]) if "fc.bias" in state else len(labels)
    if classes != len(labels):
        raise ExportError(f"there are {len(labels)} labels, but the checkpoint has {classes} classes")


def _check_values(state: Mapping[str, Tensor]) -> None:
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ExportError(f"the checkpoint has NaN or infinite values in {_some(bad)}: its training has diverged")


def _check_state(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> None:
    missing = [key for key in expected if key not in given and not key.endswith(COUNTER)]
    unexpected = [key for key in given if key not in expected]
    shapes = [
        f"{key} {list(given[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    for what, keys in (("has no", missing), ("has unknown", unexpected), ("has", shapes)):
        if keys:
            raise ExportError(f"the checkpoint is no {name}: it {what} {_some(keys)}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
