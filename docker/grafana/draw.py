"""Draw the dashboards from a running Prometheus: `python docker/grafana/draw.py http://127.0.0.1:9090 docs`.

A picture for documents, with the same queries; Grafana draws them for people on call.
"""

import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

FOLDER = Path(__file__).parent / "dashboards"
COLUMNS = 3
SECONDS = 120.0
STEPS = 120


def main() -> None:
    """One PNG for each dashboard, of the last SECONDS."""
    prometheus, out = sys.argv[1], Path(sys.argv[2])
    for path in sorted(FOLDER.glob("*.json")):
        dashboard = json.loads(path.read_text())
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        rows = -(-len(panels) // COLUMNS)
        figure, axes = plt.subplots(rows, COLUMNS, figsize=(5.2 * COLUMNS, 2.9 * rows), layout="constrained")
        figure.suptitle(dashboard["title"])
        for ax, panel in zip(axes.flat, panels, strict=False):
            _draw(ax, panel, prometheus)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        figure.savefig(out / f"dashboard-{path.stem}.png", dpi=80)


def _draw(ax: Axes, panel: dict[str, Any], prometheus: str) -> None:
    ax.set_title(panel["title"], fontsize=9, loc="left")
    ax.tick_params(labelsize=7)
    series = [
        (_legend(target, each["metric"]), each["values"])
        for target in panel["targets"]
        for each in _ask(prometheus, target["expr"])
    ]
    if not series:
        ax.text(0.5, 0.5, "no data", ha="center", transform=ax.transAxes, color="grey")
    elif panel["type"] == "heatmap":
        _heat(ax, series)
    elif panel["type"] == "stat":
        ax.set_axis_off()
        ax.text(0.5, 0.5, _figure(float(series[0][1][-1][1]), panel), ha="center", fontsize=20, transform=ax.transAxes)
    else:
        _lines(ax, series)


def _lines(ax: Axes, series: list[tuple[str, list[list[Any]]]]) -> None:
    for legend, values in series:
        ax.plot([_minutes(at) for at, _ in values], [float(value) for _, value in values], label=legend, linewidth=1)
    ax.set_ylim(bottom=0, top=1.08 * ax.get_ylim()[1])
    ax.legend(fontsize=6, loc="best", ncols=1 if len(series) < 6 else 2)
    ax.grid(alpha=0.2)


def _heat(ax: Axes, series: list[tuple[str, list[list[Any]]]]) -> None:
    """Cumulative buckets to counts of each bucket."""
    series = sorted(series, key=lambda each: float(each[0]))
    counts = np.array([[float(value) for _, value in values] for _, values in series])
    ax.imshow(np.diff(counts, axis=0, prepend=0), aspect="auto", origin="lower", cmap="YlOrRd")
    ax.set_yticks(range(len(series)), [legend for legend, _ in series], fontsize=5)
    ax.set_xticks([])


def _figure(value: float, panel: dict[str, Any]) -> str:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if unit == "dateTimeFromNow":
        return f"{(time.time() - value / 1000) / 60:.0f} min"
    return f"{value:.2%}" if unit == "percentunit" else f"{value:,.1f}"


def _ask(prometheus: str, expression: str) -> list[dict[str, Any]]:
    now = time.time()
    query = {
        "query": expression.replace("$__rate_interval", "15s"),
        "start": now - SECONDS,
        "end": now,
        "step": SECONDS / STEPS,
    }
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(query)}") as answer:  # noqa: S310
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def _legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    text = str(target.get("legendFormat", ""))
    for name, value in labels.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def _minutes(at: float) -> float:
    return (at - time.time()) / 60


if __name__ == "__main__":
    main()
