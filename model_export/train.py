"""`resnet-export train`: data, network, the loop, and a checkpoint that says of itself all that `convert` needs."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from model_export.catalog import Architecture, find_architecture
from model_export.datasets import open_data
from model_export.datasets.base import DataSet, Facts
from model_export.errors import ExportError
from model_export.files import DESCRIPTION_KEY, Description
from model_export.fitting import Epoch, Recipe, Training, begin, fit
from model_export.skip_schedule import Closure
from model_export.training_state import TrainingState, write_whole
from service.artifact import Accuracy

WARM_UP_DEPTH = 110


@dataclass(frozen=True)
class Order:
    """What is trained, on what, and how.

    Without `epochs` it is the data set's number, without `warm_up` the paper's choice: for 110 layers and more. `flip`
    is whether a training image and its mirror image have the same label.
    """

    architecture: str
    data: str
    epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 0.1
    warm_up: bool | None = None
    flip: bool = True
    skip_schedule: tuple[Closure, ...] = ()
    seed: int = 0
    device: str = "auto"

    def recipe(self, architecture: Architecture, facts: Facts) -> Recipe:
        """With what was left open decided."""
        deep = architecture.config is not None and architecture.config.cifar and architecture.depth >= WARM_UP_DEPTH
        return Recipe(
            epochs=self.epochs or facts.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warm_up=deep if self.warm_up is None else self.warm_up,
            skip_schedule=self.skip_schedule,
            seed=self.seed,
        )


def train(order: Order, out: Path, log: Path | None = None) -> Accuracy:
    """Train and write a safetensors file that describes itself; returns the held-out accuracy.

    The seed fixes the initial weights, the order and the augmentation. While the run lasts its state is kept beside the
    file after each epoch, and the same order goes on from there.

    Args:
        order: the network, the data and the recipe.
        out: the file to write.
        log: a file of JSON lines, the settings and then each epoch; beside `out` where None.

    Raises:
        ExportError: unknown network, missing data, no such device, a loss that is not finite, the state of another run.
    """
    if out.is_dir():
        raise ExportError(f"{out} is a folder: give the file to write")
    architecture = find_architecture(order.architecture)
    data = open_data(order.data, architecture.input_size, flip=order.flip)
    training = start(order, data)
    state = TrainingState(out.with_suffix(".training.safetensors"), settings_of(order, training.recipe, data.facts))
    state.resume(training)
    record = _Log(log or out.with_suffix(".jsonl"))
    record.begin(state.settings, training.epochs)
    go_on(training, data, architecture.name, state, record.add)
    accuracy = Accuracy(
        data=data.facts.held_out_name,
        images=data.facts.held_out_images,
        top1=round(1 - training.epochs[-1].test_error, 6),
    )
    description = Description(
        architecture=architecture.name,
        labels=data.facts.labels,
        preprocessing=data.facts.preprocessing,
        accuracy=accuracy,
        recipe=_stated(training.recipe) | {"data": data.facts.name, "torch": torch.__version__},
    )
    weights = {name: tensor.cpu().contiguous() for name, tensor in training.network.state_dict().items()}
    write_whole(out, save(weights, {DESCRIPTION_KEY: description.model_dump_json()}))
    state.remove()
    return accuracy


def start(order: Order, data: DataSet) -> Training:
    """A run before its first epoch, its weights drawn by the seed.

    Raises:
        ExportError: unknown network, or no such device.
    """
    architecture = find_architecture(order.architecture)
    device = find_device(order.device)
    torch.manual_seed(order.seed)
    network = architecture.build(len(data.facts.labels)).to(device)
    return begin(network, order.recipe(architecture, data.facts))


def go_on(
    training: Training, data: DataSet, title: str, state: TrainingState, ended: Callable[[Epoch], None] | None = None
) -> None:
    """Train to the last epoch, and keep the state after each.

    Raises:
        ExportError: the loss is not finite, the skip schedule does not fit, or the person interrupts.
    """

    def keep(epoch: Epoch) -> None:
        if ended:
            ended(epoch)
        state.save(training)

    try:
        fit(training, data, title, keep)
    except KeyboardInterrupt as interrupt:
        done = f"{len(training.epochs)} of {training.recipe.epochs} epochs"
        raise ExportError(f"interrupted after {done}: the same command goes on from there") from interrupt


def find_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> the device; auto is CUDA where there is one.

    Raises:
        ExportError: CUDA is asked for and not there.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ExportError("torch finds no CUDA device here: install torch's CUDA build, or leave --device away")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def settings_of(order: Order, recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    images = {"training_images": facts.training_images, "held_out_images": facts.held_out_images}
    return {"architecture": order.architecture, "data": facts.name, "flip": order.flip, **images, **asdict(recipe)}


def _stated(recipe: Recipe) -> dict[str, Any]:
    """What is off is left out, so that the digits' recipe reads as in the file that ships."""
    return {name: value for name, value in asdict(recipe).items() if name == "seed" or value}


@dataclass(frozen=True)
class _Log:
    """JSON lines: the settings, then each epoch. What a killed run logged and did not keep is written over."""

    path: Path

    def begin(self, settings: Mapping[str, Any], epochs: Iterable[Epoch]) -> None:
        lines = [settings, *(epoch._asdict() for epoch in epochs)]
        write_whole(self.path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())

    def add(self, epoch: Epoch) -> None:
        with self.path.open("a") as file:
            file.write(f"{json.dumps(epoch._asdict())}\n")
