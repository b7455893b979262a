"""Trains a checkpoint that `convert` takes, by the paper's recipe for CIFAR (section 4.2).

SGD with momentum 0.9 and weight decay 1e-4, batches of 128, learning rate 0.1 divided by 10 at 50 % and 75 %.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from model_export.catalog import Architecture
from model_export.data import DIGIT_LABELS, ENLARGEMENTS, Digits, augment, enlarge, load_digits
from model_export.errors import ExportError
from model_export.files import DESCRIPTION_KEY, Description
from model_export.presets import PRESETS
from service.artifact import Accuracy

RECIPE = PRESETS["digits"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run besides the data."""

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0


class Epoch(NamedTuple):
    """What one pass over the data came to. Errors are shares of 1; the training error is of the augmented images."""

    number: int
    loss: float
    train_error: float
    test_error: float


def train_digits(architecture: Architecture, recipe: Recipe, out: Path) -> Accuracy:
    """Train on the digits and write a safetensors file that describes itself; returns the held-out accuracy.

    The seed fixes the initial weights, the order and the augmentation. Shows a bar with loss and accuracy.
    """
    if out.is_dir():
        raise ExportError(f"{out} is a folder: give the file to write")
    torch.manual_seed(recipe.seed)
    digits = load_digits()
    network = architecture.build(len(DIGIT_LABELS))
    fit(network, digits, recipe, "training", lambda _: None)
    accuracy = evaluate(network, digits)
    description = Description(
        architecture=architecture.name,
        labels=DIGIT_LABELS,
        preprocessing=RECIPE,
        accuracy=accuracy,
        recipe=asdict(recipe) | {"data": "digits", "torch": torch.__version__},
    )
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, out, metadata={DESCRIPTION_KEY: description.model_dump_json()})
    return accuracy


def evaluate(network: nn.Module, digits: Digits) -> Accuracy:
    """Top-1 accuracy on the held-out scans, enlarged as the service enlarges them."""
    network.eval()
    images = enlarge(digits.test_scans, ENLARGEMENTS[0]).unsqueeze(1).float() / 255
    with torch.inference_mode():
        predicted = network(normalise(images)).argmax(dim=1)
    correct = (predicted == torch.from_numpy(digits.test_targets)).float().mean().item()
    return Accuracy(data="digits, held-out 20 %", images=len(images), top1=round(correct, 6))


def fit(network: nn.Module, digits: Digits, recipe: Recipe, title: str, tell: Callable[[Epoch], None]) -> None:
    """Train a network in place; `tell` is called after each epoch. Shows a bar under the title."""
    optimiser = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    milestones = [recipe.epochs // 2, recipe.epochs * 3 // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones)
    enlarged = [enlarge(digits.train_scans, each) for each in ENLARGEMENTS]
    targets = torch.from_numpy(digits.train_targets)
    progress = tqdm(range(1, recipe.epochs + 1), desc=title, unit="epoch")
    for number in progress:
        network.train()
        steps = [
            _step(network, optimiser, images, labels)
            for images, labels in _batches(enlarged, targets, recipe.batch_size)
        ]
        schedule.step()
        held_out = evaluate(network, digits).top1
        loss = sum(step.loss for step in steps) / len(steps)
        progress.set_postfix(loss=f"{loss:.4f}", held_out=f"{held_out:.2%}")
        tell(Epoch(number, loss, sum(step.wrong for step in steps) / len(targets), 1 - held_out))


def _batches(enlarged: list[Tensor], targets: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order; each batch takes one of the enlargements, augmented: `[n, 1, 32, 32]` in [0, 1]."""
    for chosen in torch.split(torch.randperm(len(targets)), size):
        images = enlarged[int(torch.randint(len(enlarged), ()))][chosen]
        yield augment(images.unsqueeze(1).float() / 255), targets[chosen]


class _Step(NamedTuple):
    loss: float
    wrong: int


def _step(network: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> _Step:
    logits = network(normalise(images))
    loss = nn.functional.cross_entropy(logits, labels)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return _Step(loss.item(), int((logits.argmax(dim=1) != labels).sum()))


def normalise(images: Tensor) -> Tensor:
    """Grey `[n, 1, H, W]` in [0, 1] -> normalised `[n, 3, H, W]`, as the graph does it."""
    mean = torch.tensor(RECIPE.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(RECIPE.std).reshape(1, 3, 1, 1)
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)
