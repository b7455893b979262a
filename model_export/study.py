"""The degradation experiment (He et al., section 4.2, figure 6): plain against residual networks as depth grows.

Deeper plain networks have a higher *training* error, so it is not overfitting; with shortcuts the order turns round.
What goes through the layers is measured as well, see `signals`.
"""

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from model_export.datasets import open_data
from model_export.datasets.base import DataSet, Facts
from model_export.errors import ExportError
from model_export.signals import Signal, measure
from model_export.study_figures import draw_errors, draw_signals, title_of
from model_export.train import Order, go_on, settings_of, start
from model_export.training_state import TrainingState, write_whole

PLAN, RUNS, SIGNALS, TABLE = "study.json", "runs.csv", "signals.csv", "study.md"
FIGURE, SIGNAL_FIGURE = "figure.png", "signals.png"
INPUT_SIZE = 32
# Of a set as small as the digits, a few epochs in the paper's batches of 128 are too few steps for 56 layers.
BATCH_SIZE, SMALL_BATCH_SIZE, SMALL_SET = 128, 32, 10_000
# The paper's rate for its batch, and in proportion for others (Goyal et al., arXiv 1706.02677).
RATE_PER_IMAGE = 0.1 / 128
# Test errors in % on CIFAR-10 that the paper states (table 6); plain networks are only in its figure 6.
PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}


@dataclass(frozen=True)
class Plan:
    """Which networks are trained, on what, for how long and how often; `variants` are plain, a, b and c."""

    depths: tuple[int, ...]
    variants: tuple[str, ...]
    seeds: int
    data: str = "digits"
    epochs: int = 12
    batch_size: int | None = None
    learning_rate: float | None = None
    device: str = "auto"

    def order(self, variant: str, depth: int, seed: int, facts: Facts) -> Order:
        """One run, with what was left open decided by the size of the data."""
        batch_size = self.batch_size or (SMALL_BATCH_SIZE if facts.training_images < SMALL_SET else BATCH_SIZE)
        return Order(
            architecture=f"cifar-plain{depth}" if variant == "plain" else f"cifar-resnet{depth}-{variant}",
            data=self.data,
            epochs=self.epochs,
            batch_size=batch_size,
            learning_rate=self.learning_rate or batch_size * RATE_PER_IMAGE,
            seed=seed,
            device=self.device,
        )


class Row(NamedTuple):
    """One epoch of one run; errors are shares of 1."""

    variant: str
    depth: int
    seed: int
    epoch: int
    loss: float
    train_error: float
    test_error: float


def study(plan: Plan, out: Path) -> str:
    """Train every network of the plan, and write CSV, table and figures; returns the table.

    A run that is whole in the CSV is not repeated, and one that was killed goes on after its last epoch. So a study may
    be stopped, and more depths, variants and seeds may be added to it.

    Raises:
        ExportError: missing data, no such device, or the folder is of a study with other settings.
    """
    data = open_data(plan.data, INPUT_SIZE)
    _claim(out / PLAN, plan, data.facts)
    done = {(row.variant, row.depth, row.seed) for row in _rows(out / RUNS)}
    for seed in range(plan.seeds):
        for depth in plan.depths:
            for variant in plan.variants:
                if (variant, depth, seed) not in done:
                    _run(variant, depth, seed, data, plan, out)
    rows = [row for row in _rows(out / RUNS) if row.variant in plan.variants and row.depth in plan.depths]
    rows = [row for row in rows if row.seed < plan.seeds]
    table = _table(rows, plan, data.facts)
    (out / TABLE).write_text(table)
    draw_errors(rows, plan.variants, plan.depths, out / FIGURE)
    draw_signals(_signals(out / SIGNALS), plan.variants, plan.depths, out / SIGNAL_FIGURE)
    return table


def _claim(path: Path, plan: Plan, facts: Facts) -> None:
    """Runs that differ in more than network and seed do not belong into one table."""
    order = plan.order("plain", 8, 0, facts)
    own = {
        "data": facts.name,
        "training_images": facts.training_images,
        "epochs": order.epochs,
        "batch_size": order.batch_size,
        "learning_rate": order.learning_rate,
    }
    if not path.exists():
        write_whole(path, f"{json.dumps(own, indent=2)}\n".encode())
        return
    theirs = json.loads(path.read_text())
    for name, value in own.items():
        if theirs.get(name) != value:
            raise ExportError(
                f"{path.parent} holds a study with {name} {theirs.get(name)}, not {value}: give that, or another --out"
            )


def _run(variant: str, depth: int, seed: int, data: DataSet, plan: Plan, out: Path) -> None:
    order = plan.order(variant, depth, seed, data.facts)
    name = f"{order.architecture}, seed {seed}"
    training = start(order, data)
    signals = measure(training.network, data, "at initialisation") if not seed else []
    kept = out / f"{order.architecture}-seed{seed}.training.safetensors"
    state = TrainingState(kept, settings_of(order, training.recipe, data.facts))
    state.resume(training)
    go_on(training, data, name, state)
    if not seed:
        signals += measure(training.network, data, "after training")
    _append(out / SIGNALS, ("variant", "depth", *Signal._fields), [(variant, depth, *signal) for signal in signals])
    # Last: only a whole run is in it.
    _append(
        out / RUNS,
        Row._fields,
        [
            Row(variant, depth, seed, each.number, each.loss, each.train_error, each.test_error)
            for each in training.epochs
        ],
    )
    state.remove()


def _table(rows: Sequence[Row], plan: Plan, facts: Facts) -> str:
    """The last epoch of each network, in the terms of the paper."""
    last: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.epoch == plan.epochs:
            last[row.variant, row.depth].append(row)
    order = plan.order("plain", 8, 0, facts)
    runs = f"{plan.epochs} epochs, {plan.seeds} seed{'s' * (plan.seeds > 1)}"
    recipe = f"batches of {order.batch_size}, learning rate {order.learning_rate:g}"
    lines = [
        f"{facts.name}, {runs}, {recipe}: error in % at the end, training / test.",
        "",
        "| layers | " + " | ".join(map(title_of, plan.variants)) + " | the paper's residual nets, CIFAR-10 |",
        "| ---: |" + " ---: |" * (len(plan.variants) + 1),
    ]
    for depth in plan.depths:
        cells = [_cell(last[variant, depth]) for variant in plan.variants]
        paper = f"{PAPER[depth]:.2f} (test)" if depth in PAPER else ""
        lines.append(f"| {depth} | " + " | ".join(cells) + f" | {paper} |")
    return "\n".join([*lines, ""])


def _cell(runs: Sequence[Row]) -> str:
    texts = []
    for values in ([run.train_error * 100 for run in runs], [run.test_error * 100 for run in runs]):
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        texts.append(f"{statistics.mean(values):.1f}{spread}")
    return " / ".join(texts)


def _rows(path: Path) -> list[Row]:
    return [
        Row(row[0], int(row[1]), int(row[2]), int(row[3]), float(row[4]), float(row[5]), float(row[6]))
        for row in _lines(path)
    ]


def _signals(path: Path) -> dict[tuple[str, int, str], list[Signal]]:
    """By variant, depth and when."""
    found: dict[tuple[str, int, str], list[Signal]] = defaultdict(list)
    for variant, depth, when, layer, gradient, response in _lines(path):
        found[variant, int(depth), when].append(Signal(when, int(layer), float(gradient), float(response)))
    return found


def _lines(path: Path) -> Iterator[list[str]]:
    if path.exists():
        with path.open(newline="") as file:
            yield from list(csv.reader(file))[1:]


def _append(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    begin = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if begin:
            writer.writerow(header)
        writer.writerows(lines)
