"""The figures of a study: errors by epoch in the form of the paper's figure 6, and signals by layer (figure 7)."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_export.signals import Signal

if TYPE_CHECKING:
    from model_export.study import Row


def title_of(variant: str) -> str:
    """plain, a, b or c in words."""
    return "plain" if variant == "plain" else f"residual, option {variant.upper()}"


def draw_errors(rows: "Sequence[Row]", variants: Sequence[str], depths: Sequence[int], path: Path) -> None:
    """Training error dashed, test error bold with the range of the seeds, one panel for each kind of network."""
    figure, axes = _panels(1, len(variants))
    for ax, variant in zip(axes[0], variants, strict=True):
        for colour, depth in zip(_colours(len(depths)), depths, strict=True):
            runs = [row for row in rows if (row.variant, row.depth) == (variant, depth)]
            epochs = sorted({row.epoch for row in runs})
            training, test = (
                [[getattr(row, name) * 100 for row in runs if row.epoch == epoch] for epoch in epochs]
                for name in ("train_error", "test_error")
            )
            ax.plot(epochs, list(map(statistics.mean, training)), "--", color=colour, linewidth=1)
            ax.plot(epochs, list(map(statistics.mean, test)), color=colour, linewidth=2, label=f"{depth} layers")
            ax.fill_between(epochs, list(map(min, test)), list(map(max, test)), color=colour, alpha=0.15)
        ax.set_title(title_of(variant))
        ax.set_xlabel("epoch; dashed: training, bold: test")
        ax.set_ylim(0, 100)
        ax.legend()
    axes[0][0].set_ylabel("error, %")
    figure.savefig(path, dpi=100)


def draw_signals(
    signals: Mapping[tuple[str, int, str], Sequence[Signal]],
    variants: Sequence[str],
    depths: Sequence[int],
    path: Path,
) -> None:
    """Gradients above, at initialisation dotted; responses below, after training, as they are all 1 before."""
    figure, axes = _panels(2, len(variants))
    for column, variant in enumerate(variants):
        gradients, responses = axes[0][column], axes[1][column]
        for colour, depth in zip(_colours(len(depths)), depths, strict=True):
            before, after = (
                signals.get((variant, depth, when), ()) for when in ("at initialisation", "after training")
            )
            gradients.semilogy(*_by_place(before, "gradient"), ":", color=colour, linewidth=1)
            gradients.semilogy(*_by_place(after, "gradient"), "-", color=colour, linewidth=1, label=f"{depth} layers")
            responses.plot(*_by_place(after, "response"), "-", color=colour, linewidth=1, label=f"{depth} layers")
        gradients.set_title(title_of(variant))
        gradients.set_xlabel("place in the network; dotted: at initialisation, solid: after training")
        responses.set_xlabel("place in the network, from input (0) to output (1)")
        responses.legend(fontsize=7)
        gradients.legend(fontsize=7)
    axes[0][0].set_ylabel("norm of the gradient by a layer's weights")
    axes[1][0].set_ylabel("standard deviation of a layer's responses")
    figure.savefig(path, dpi=100)


def _by_place(signals: Sequence[Signal], what: str) -> tuple[list[float], list[float]]:
    return [each.layer / len(signals) for each in signals], [getattr(each, what) for each in signals]


def _panels(rows: int, columns: int) -> tuple[Any, Any]:
    import matplotlib as mpl  # noqa: PLC0415  a second of start-up that no other command needs

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt.subplots(
        rows, columns, figsize=(5.5 * columns, 4.2 * rows), sharey="row", squeeze=False, layout="constrained"
    )


def _colours(count: int) -> list[tuple[float, ...]]:
    from matplotlib import colormaps  # noqa: PLC0415

    return [colormaps["viridis"](0.85 * index / max(1, count - 1)) for index in range(count)]
