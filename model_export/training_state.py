"""A training run on disk, so that a killed one goes on: a safetensors file, written anew after each epoch.

It holds weights, batch statistics, momentum, torch's random numbers and the epochs so far. On the CPU, with the same
torch and the same number of threads, a run that was killed ends with the bytes of one that was not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model_export.errors import ExportError
from model_export.fitting import Epoch, Training

KEY = "resnet_service_training"
NETWORK, MOMENTUM, RANDOM = "network.", "momentum.", "random."


@dataclass(frozen=True)
class TrainingState:
    """The file of a run, and the settings that the run was begun with."""

    path: Path
    settings: Mapping[str, Any]

    def save(self, training: Training) -> None:
        """Write the run as it is now; the file before is replaced as a whole."""
        said = {
            "settings": self.settings,
            "epochs": [epoch._asdict() for epoch in training.epochs],
            "scaler": training.scaler.state_dict(),
        }
        content = save(_tensors(training), {KEY: json.dumps(said)})
        write_whole(self.path, content)

    def resume(self, training: Training) -> None:
        """Put the run where the file is; without a file it stays at its beginning.

        Raises:
            ExportError: the file is damaged, or of a run with other settings.
        """
        if not self.path.exists():
            return
        said, tensors = _read(self.path)
        self._refuse_others(said["settings"])
        training.network.load_state_dict(_under(NETWORK, tensors))
        momentum = _under(MOMENTUM, tensors)
        for name, parameter in training.network.named_parameters():
            if name in momentum:
                training.optimiser.state[parameter]["momentum_buffer"] = momentum[name].to(parameter.device)
        training.scaler.load_state_dict(said["scaler"])
        training.epochs[:] = [Epoch(**epoch) for epoch in said["epochs"]]
        torch.set_rng_state(tensors[f"{RANDOM}cpu"])
        if training.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"{RANDOM}cuda"], training.device)

    def remove(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)

    def _refuse_others(self, settings: Mapping[str, Any]) -> None:
        own = json.loads(json.dumps(self.settings))
        for name in own.keys() | settings.keys():
            if own.get(name) != settings.get(name):
                raise ExportError(
                    f"{self.path} is of a training with {name} {settings.get(name)}, not {own.get(name)}: give that to "
                    "go on with it, or remove the file to begin anew"
                )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a run after a kill, finds either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _tensors(training: Training) -> dict[str, Tensor]:
    tensors = {f"{NETWORK}{name}": tensor for name, tensor in training.network.state_dict().items()}
    for name, parameter in training.network.named_parameters():
        momentum = training.optimiser.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"{MOMENTUM}{name}"] = momentum
    tensors[f"{RANDOM}cpu"] = torch.get_rng_state()
    if training.device.type == "cuda":
        tensors[f"{RANDOM}cuda"] = torch.cuda.get_rng_state(training.device)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[KEY])
            return said, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, KeyError, ValueError) as error:
        raise ExportError(f"{path} is no training that can go on: remove it to begin anew") from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
