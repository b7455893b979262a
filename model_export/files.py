"""Checkpoint files and folders -> tensors, and what they say of themselves. Nothing in a file is ever executed.

Which kind a file is, its content decides, never its name.
"""

import hashlib
import json
import pickle
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_export.errors import ExportError
from service.artifact import Accuracy, Preprocessing, first_problem

DESCRIPTION_KEY = "resnet_service"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# A zip archive, or a bare pickle of protocol 2 and up, as torch wrote before 1.6.
TORCH_STARTS = (b"PK", b"\x80")
LFS_POINTER = b"version https://git-lfs"

State = dict[str, Tensor]


class Description(BaseModel):
    """What a checkpoint that was trained here says of itself, in its safetensors metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    accuracy: Accuracy | None = None
    recipe: dict[str, Any]


@dataclass
class Contents:
    """A checkpoint as it was found: tensors under their own names, and the JSON files beside them."""

    state: State
    sha256: str
    description: Description | None = None
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    lightning: bool = False
    notes: list[str] = field(default_factory=list)


def read_contents(path: Path, *, ema: bool) -> Contents:
    """Read a checkpoint file, or a folder with `config.json` and weights, as Hugging Face and timm lay them out.

    Args:
        path: the file or folder.
        ema: take the exponential moving average of the weights, where a trainer kept one.

    Raises:
        ExportError: it is missing, damaged, holds more than tensors, or has no average when one is asked for.
    """
    if path.is_dir():
        return _read_folder(path, ema=ema)
    if not path.is_file():
        raise ExportError(f"{path} is neither a file nor a folder; SOURCE is a checkpoint or {_SOURCES}")
    contents = _read_file(path, ema=ema)
    if not contents.description:
        contents.config = _read_json(path.parent / CONFIG)
        contents.processor = _read_json(path.parent / PROCESSOR)
    return contents


_SOURCES = "builtin:NAME, torchvision:NAME[@WEIGHTS], hf:OWNER/NAME or timm:MODEL.TAG"


def _read_folder(folder: Path, *, ema: bool) -> Contents:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            if not (folder / CONFIG).is_file():
                raise ExportError(f"{folder} has no {CONFIG} that says what the weights are: convert {name} itself")
            return read_contents(folder / name, ema=ema)
    if (folder / f"{WEIGHT_FILES[0]}.index.json").is_file():
        raise ExportError(f"{folder} holds its weights in several files: save the model again in one")
    raise ExportError(f"{folder} holds no {' or '.join(WEIGHT_FILES)}: give the checkpoint file itself")


def _read_file(path: Path, *, ema: bool) -> Contents:
    with path.open("rb") as file:
        head = file.read(len(LFS_POINTER))
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if head == LFS_POINTER:
        raise ExportError(f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull`")
    # A safetensors file is an 8-byte header length and a JSON object.
    if head[8:9] == b"{":
        if ema:
            raise ExportError(f"{path} holds one set of weights: leave --ema away")
        state, description = _read_safetensors(path)
        return Contents(state, sha256, description)
    if not head.startswith(TORCH_STARTS):
        raise ExportError(_damaged(path))
    return _unwrap(_read_torch(path), path, sha256, ema=ema)


def _read_safetensors(path: Path) -> tuple[State, Description | None]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ExportError(f"{path} is a damaged safetensors file: {error}; fetch or save it again") from error
    if DESCRIPTION_KEY not in metadata:
        return state, None
    try:
        return state, Description.model_validate_json(metadata[DESCRIPTION_KEY])
    except ValidationError as error:
        raise ExportError(f"{path} describes itself in a form that is not known: {first_problem(error)}") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters ends in an exception
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{path} holds more than tensors{_blocked(error)}, and loading it could run code: save it again with "
            "torch.save(model.state_dict(), …) where it was trained"
        ) from error
    except Exception as error:  # the unpickler stumbles over damaged files with whatever is at hand
        raise ExportError(_damaged(path)) from error


def _blocked(error: Exception) -> str:
    """The class or function that the file asks for, from torch's message."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    return f" ({match[1]})" if match else ""


def _damaged(path: Path) -> str:
    return f"{path} is damaged, or neither a torch checkpoint nor a safetensors file: fetch or save it again"


def _unwrap(content: Any, path: Path, sha256: str, *, ema: bool) -> Contents:
    """Find the state dict in what a trainer saved, and say which one was taken when there is a choice."""
    lightning = isinstance(content, dict) and "pytorch-lightning_version" in content
    notes = []
    if ema:
        content, taken = _average(content, path)
        notes.append(f"took {taken}, the averaged weights")
    elif isinstance(content, dict):
        averages = [name for name in EMA_WRAPPERS if isinstance(content.get(name), dict)]
        for name in WRAPPERS:
            if isinstance(content.get(name), dict):
                content = content[name]
                notes.append(f"took {name}" + (f", not {averages[0]}: --ema takes that" if averages else ""))
                break
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "n_averaged"}
    if not isinstance(content, dict) or not content or not all(map(_is_weight, content.items())):
        raise ExportError(f"{path} holds no state dict: save it again with torch.save(model.state_dict(), …)")
    return Contents(content, sha256, lightning=lightning, notes=notes)


def _is_weight(entry: tuple[Any, Any]) -> bool:
    key, value = entry
    return isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _average(content: Any, path: Path) -> tuple[Any, str]:
    for name in EMA_WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            return content[name], name
    raise ExportError(f"{path} holds no averaged weights ({', '.join(EMA_WRAPPERS)}): leave --ema away")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ExportError(f"{path} is no readable JSON: {error}") from error
    return content if isinstance(content, dict) else {}
