"""The training loop: the paper's recipe for CIFAR (section 4.2), on whatever data and network.

SGD with momentum 0.9 and weight decay 1e-4, batches of 128, learning rate 0.1 divided by 10 at 50 % and 75 %. On CUDA
in mixed precision (float16 with a scaled loss), on the CPU in float32.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from model_export.datasets.base import Batch, DataSet
from model_export.errors import ExportError
from model_export.skip_schedule import Closure, set_branches

# Section 4.2, for 110 layers: a tenth of the rate until the training error is below 80 %, about one epoch of CIFAR.
WARM_UP_ERROR = 0.8
EVALUATED_AT_ONCE = 256


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run besides network and data."""

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warm_up: bool = False
    skip_schedule: tuple[Closure, ...] = ()
    seed: int = 0


class Epoch(NamedTuple):
    """What one pass over the data came to. Errors are shares of 1; the training error is of the augmented images."""

    number: int
    loss: float
    train_error: float
    test_error: float
    learning_rate: float
    seconds: float


@dataclass
class Training:
    """A training run on its way: all that the next epoch depends on besides the data and torch's generators."""

    network: nn.Module
    recipe: Recipe
    optimiser: torch.optim.SGD
    scaler: torch.amp.GradScaler
    epochs: list[Epoch]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device


def begin(network: nn.Module, recipe: Recipe) -> Training:
    """A run before its first epoch. Its network is trained in place, on the device that it is on."""
    optimiser = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    on_cuda = next(network.parameters()).device.type == "cuda"
    return Training(network, recipe, optimiser, torch.amp.GradScaler(enabled=on_cuda), [])


def fit(training: Training, data: DataSet, title: str, ended: Callable[[Epoch], None]) -> None:
    """Train to the last epoch; `ended` is called after each. Shows a bar with loss, accuracy, rate and time left.

    Raises:
        ExportError: the loss is not finite, or the skip schedule does not fit the network.
    """
    set_branches(training.network, training.recipe.skip_schedule, 0)
    images, done = data.facts.training_images, len(training.epochs)
    total = training.recipe.epochs * images
    with tqdm(total=total, initial=done * images, desc=title, unit="image", unit_scale=True) as bar:
        while len(training.epochs) < training.recipe.epochs:
            training.epochs.append(_epoch(training, data, bar))
            ended(training.epochs[-1])


def learning_rate(recipe: Recipe, epochs: list[Epoch]) -> float:
    """The rate of the epoch that comes after these."""
    if recipe.warm_up and all(epoch.train_error >= WARM_UP_ERROR for epoch in epochs):
        return recipe.learning_rate * 0.1
    done = len(epochs) / recipe.epochs
    return recipe.learning_rate * 0.1 ** ((done >= 0.5) + (done >= 0.75))


def held_out_error(network: nn.Module, data: DataSet) -> float:
    """The share of held-out images whose top-1 class is wrong."""
    device = next(network.parameters()).device
    network.eval()
    wrong = 0
    with torch.inference_mode(), _mixed(device):
        for images, targets in data.held_out(EVALUATED_AT_ONCE):
            predicted = network(images.to(device)).argmax(dim=1).cpu()
            wrong += int((predicted != targets).sum())
    return wrong / data.facts.held_out_images


def _epoch(training: Training, data: DataSet, bar: "tqdm[Any]") -> Epoch:
    recipe = training.recipe
    number = len(training.epochs) + 1
    started = time.monotonic()
    rate = learning_rate(recipe, training.epochs)
    for group in training.optimiser.param_groups:
        group["lr"] = rate
    set_branches(training.network, recipe.skip_schedule, (number - 1) / recipe.epochs)
    training.network.train()
    loss, wrong, seen = 0.0, 0, 0
    for batch in data.training(recipe.batch_size):
        step = _step(training, batch)
        if not math.isfinite(step.loss):
            raise ExportError(f"the loss is not finite in epoch {number}: give a lower --learning-rate than {rate:g}")
        count = len(batch.targets)
        loss, wrong, seen = loss + step.loss * count, wrong + step.wrong, seen + count
        figures = {"loss": f"{loss / seen:.4f}", "accuracy": f"{1 - wrong / seen:.2%}", "rate": f"{rate:g}"}
        bar.set_postfix({"epoch": f"{number}/{recipe.epochs}", **figures}, refresh=False)
        bar.update(count)
    return Epoch(
        number=number,
        loss=loss / seen,
        train_error=wrong / seen,
        test_error=held_out_error(training.network, data),
        learning_rate=rate,
        seconds=time.monotonic() - started,
    )


class _Step(NamedTuple):
    loss: float
    wrong: int


def _step(training: Training, batch: Batch) -> _Step:
    device = training.device
    images, targets = (each.to(device) for each in batch)
    with _mixed(device):
        logits = training.network(images)
        loss = nn.functional.cross_entropy(logits, targets)
    training.optimiser.zero_grad()
    training.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    training.scaler.step(training.optimiser)
    training.scaler.update()
    return _Step(loss.item(), int((logits.argmax(dim=1) != targets).sum()))


def _mixed(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.float16, enabled=device.type == "cuda")
