"""The degradation experiment (He et al., section 4.2, figure 6): plain against residual networks as depth grows.

Deeper plain networks have a higher *training* error, so it is not overfitting; with shortcuts the order turns round.
The gradients of each layer are measured too, at initialisation and after training: the paper itself says that batch
normalisation keeps them from vanishing.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from model_export.catalog import find_architecture
from model_export.data import DIGIT_LABELS, ENLARGEMENTS, Digits, enlarge, load_digits
from model_export.train import Epoch, Recipe, fit, normalise

RUNS, GRADIENTS, TABLE = "runs.csv", "gradients.csv", "study.md"
FIGURE, GRADIENT_FIGURE = "figure.png", "gradients.png"
GRADIENT_BATCH = 128
# Test errors in % on CIFAR-10 that the paper states (table 6); plain networks are only in its figure 6.
PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}


@dataclass(frozen=True)
class Plan:
    """Which networks are trained, for how long and how often; `variants` are plain, a, b and c."""

    depths: tuple[int, ...]
    variants: tuple[str, ...]
    epochs: int
    seeds: int


class Row(NamedTuple):
    """One epoch of one run; errors are shares of 1."""

    variant: str
    depth: int
    seed: int
    epoch: int
    loss: float
    train_error: float
    test_error: float


class Gradient(NamedTuple):
    """The norm of the loss's gradient by the weights of one convolution, counted from the input."""

    variant: str
    depth: int
    when: str
    layer: int
    norm: float


def study(plan: Plan, out: Path) -> str:
    """Train every network of the plan, and write CSV, table and figures; returns the table.

    A run that is whole in the CSV is not repeated, so a study that was stopped goes on where it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    done = {(row.variant, row.depth, row.seed) for row in _read(out / RUNS) if row.epoch == plan.epochs}
    for seed in range(plan.seeds):
        for depth in plan.depths:
            for variant in plan.variants:
                if (variant, depth, seed) not in done:
                    _run(variant, depth, seed, digits, plan, out)
    rows = [row for row in _read(out / RUNS) if row.variant in plan.variants and row.depth in plan.depths]
    table = _table(rows, plan)
    (out / TABLE).write_text(table)
    _draw_errors(rows, plan, out / FIGURE)
    _draw_gradients(plan, out)
    return table


def _run(variant: str, depth: int, seed: int, digits: Digits, plan: Plan, out: Path) -> None:
    name = f"cifar-plain{depth}" if variant == "plain" else f"cifar-resnet{depth}-{variant}"
    torch.manual_seed(seed)
    network = find_architecture(name).build(len(DIGIT_LABELS))
    rows: list[Row] = []
    gradients = _gradients(network, digits, variant, depth, "at initialisation") if not seed else []

    def note(epoch: Epoch) -> None:
        rows.append(Row(variant, depth, seed, epoch.number, epoch.loss, epoch.train_error, epoch.test_error))

    fit(network, digits, Recipe(epochs=plan.epochs, seed=seed), f"{name}, seed {seed}", note)
    if not seed:
        gradients += _gradients(network, digits, variant, depth, "after training")
    _append(out / GRADIENTS, Gradient._fields, gradients)
    _append(out / RUNS, Row._fields, rows)  # last: only a whole run is in it


def _gradients(network: nn.Module, digits: Digits, variant: str, depth: int, when: str) -> list[Gradient]:
    """Of one batch in training mode; it leaves weights and statistics as they are."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    images = enlarge(digits.train_scans[:GRADIENT_BATCH], ENLARGEMENTS[0]).unsqueeze(1).float() / 255
    labels = torch.from_numpy(digits.train_targets[:GRADIENT_BATCH])
    network.zero_grad()
    nn.functional.cross_entropy(network(normalise(images)), labels).backward()  # type: ignore[no-untyped-call]
    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d) and each.kernel_size[0] > 1]
    norms = [float(each.weight.grad.norm()) for each in convolutions if each.weight.grad is not None]
    network.zero_grad()
    network.load_state_dict(state)
    return [Gradient(variant, depth, when, layer, norm) for layer, norm in enumerate(norms, start=1)]


def _table(rows: list[Row], plan: Plan) -> str:
    """The last epoch of each network, in the terms of the paper."""
    last: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.epoch == plan.epochs:
            last[row.variant, row.depth].append(row)
    runs = f"{plan.epochs} epochs, {plan.seeds} seed{'s' * (plan.seeds > 1)}"
    lines = [
        f"Digits, {runs}: error in % at the end, training / test.",
        "",
        "| layers | " + " | ".join(_title(each) for each in plan.variants) + " | the paper's residual nets, CIFAR-10 |",
        "| ---: |" + " ---: |" * (len(plan.variants) + 1),
    ]
    for depth in plan.depths:
        cells = [_cell(last[variant, depth]) for variant in plan.variants]
        paper = f"{PAPER[depth]:.2f} (test)" if depth in PAPER else ""
        lines.append(f"| {depth} | " + " | ".join(cells) + f" | {paper} |")
    return "\n".join([*lines, ""])


def _cell(runs: list[Row]) -> str:
    texts = []
    for values in ([run.train_error * 100 for run in runs], [run.test_error * 100 for run in runs]):
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        texts.append(f"{statistics.mean(values):.1f}{spread}")
    return " / ".join(texts)


def _title(variant: str) -> str:
    return "plain" if variant == "plain" else f"residual, option {variant.upper()}"


def _draw_errors(rows: list[Row], plan: Plan, path: Path) -> None:
    """Figure 6 of the paper: training error dashed, test error bold, one panel for each kind of network."""
    figure, axes = _panels(len(plan.variants))
    for ax, variant in zip(axes, plan.variants, strict=True):
        for colour, depth in zip(_colours(len(plan.depths)), plan.depths, strict=True):
            runs = [row for row in rows if (row.variant, row.depth) == (variant, depth)]
            epochs = sorted({row.epoch for row in runs})
            for name, style in (("train_error", {"linestyle": "--", "linewidth": 1}), ("test_error", {"linewidth": 2})):
                values = [[getattr(row, name) * 100 for row in runs if row.epoch == epoch] for epoch in epochs]
                label = f"{depth} layers" if name == "test_error" else None
                ax.plot(epochs, [statistics.mean(each) for each in values], color=colour, label=label, **style)
                if name == "test_error" and plan.seeds > 1:
                    ax.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15)
        ax.set_title(_title(variant))
        ax.set_xlabel("epoch; dashed: training, bold: test")
        ax.set_ylim(0, 100)
        ax.legend()
    axes[0].set_ylabel("error, %")
    figure.savefig(path, dpi=100)


def _draw_gradients(plan: Plan, out: Path) -> None:
    found = [Gradient(row[0], int(row[1]), row[2], int(row[3]), float(row[4])) for row in _rows_of(out / GRADIENTS)]
    figure, axes = _panels(len(plan.variants))
    for ax, variant in zip(axes, plan.variants, strict=True):
        for colour, depth in zip(_colours(len(plan.depths)), plan.depths, strict=True):
            for when, style in (("at initialisation", ":"), ("after training", "-")):
                chosen = [each for each in found if (each.variant, each.depth, each.when) == (variant, depth, when)]
                places = [each.layer / max(1, len(chosen)) for each in chosen]
                label = f"{depth} layers, {when}"
                ax.semilogy(places, [each.norm for each in chosen], style, color=colour, label=label, linewidth=1)
        ax.set_title(_title(variant))
        ax.set_xlabel("place in the network, from the input")
        ax.legend(fontsize=7)
    axes[0].set_ylabel("norm of the gradient by a layer's weights")
    figure.savefig(out / GRADIENT_FIGURE, dpi=100)


def _panels(count: int):  # type: ignore[no-untyped-def]  # noqa: ANN202  matplotlib's types
    import matplotlib as mpl  # noqa: PLC0415  a second of start-up that no other command needs

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, count, figsize=(5.5 * count, 4.2), sharey=True, squeeze=False, layout="constrained")
    return figure, axes[0]


def _colours(count: int) -> list[tuple[float, ...]]:
    from matplotlib import colormaps  # noqa: PLC0415

    return [colormaps["viridis"](0.85 * index / max(1, count - 1)) for index in range(count)]


def _read(path: Path) -> list[Row]:
    return [
        Row(row[0], int(row[1]), int(row[2]), int(row[3]), float(row[4]), float(row[5]), float(row[6]))
        for row in _rows_of(path)
    ]


def _rows_of(path: Path) -> Iterator[list[str]]:
    if path.exists():
        with path.open(newline="") as file:
            yield from list(csv.reader(file))[1:]


def _append(path: Path, header: tuple[str, ...], rows: "list[Row] | list[Gradient]") -> None:
    begin = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if begin:
            writer.writerow(header)
        writer.writerows(rows)
