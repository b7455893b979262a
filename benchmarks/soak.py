"""Hours of ordinary trouble: `make soak MINUTES=30`.

At 70 % of capacity, with 1 % bad images, 1 % callers who hang up, and a version replaced every five minutes. What a
service must not do in all that time: grow, leave a gauge standing, get slower, or answer 5xx.

    python -m benchmarks.soak --minutes 30 --out benchmarks/results

Writes a CSV with a line for each ten seconds, a chart, and the verdict; the exit code is 1 if a bound is broken.
"""

import argparse
import csv
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import httpx2
import matplotlib as mpl
import numpy as np
import psutil

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.load import MAX_CONNECTIONS, Shot, closed_loop, open_loop
from benchmarks.subjects import resident, serving
from benchmarks.workloads import post
from model_export.cli import main as export

PORT = 8191
SAMPLES = Path(__file__).parent.parent / "model_export" / "builtin" / "digits" / "samples"
SHARE = 0.7
STEP_SECONDS = 10.0
SWAP_SECONDS = 300.0
# What is measured begins here, a minute after the second swap: a version that is loaded beside the one in service needs
# memory that the allocator keeps, and that the loads after it use again.
WARM_SECONDS = 2 * SWAP_SECONDS + 60.0
MAX_SLOPE = 2**20  # bytes an hour
# Of the median p99 of the last quarter over the first one's.
MAX_DRIFT = 1.5
# Within this time under load the worker processes have started.
WORKER_SECONDS = 5.0
GAUGES = ("classify_queue_depth", "classify_images_in_flight")


class Step(NamedTuple):
    """Ten seconds of it. Times are in seconds.

    `resident` is in bytes, of the server and its workers; `standing` is what the gauges show after it. `stolen` is the
    share of the cores' time that the host of this machine gave to others, who slow the server down.
    """

    at: float
    resident: float
    p50: float
    p99: float
    good: int
    refused: int
    bad: int
    failed: int
    standing: float
    stolen: float


def main() -> int:
    """Run, write and judge; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Hours of ordinary trouble.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        for out in (models, Path(folder) / "next"):
            if export(["convert", "builtin:digits", "--name", "digits", "--precision", "int8", "--out", str(out)]):
                return 1
        with _server(models, Path(folder)) as pid:
            steps = list(_steps(pid, models, Path(folder) / "next", options.minutes * 60))
    name = f"soak-{datetime.now(UTC):%Y-%m-%d}"
    _write(steps, options.out / f"{name}.csv")
    _draw(steps, options.out / f"{name}.png")
    return _judge(steps)


@contextmanager
def _server(models: Path, folder: Path) -> Iterator[int]:
    with serving(models, PORT, folder / "log", "--model-control", "explicit") as (process, _):
        yield process.pid


def _shots() -> list[Shot]:
    """A hundred requests: 98 samples, one damaged, one whose sender hangs up."""
    headers = {"Content-Type": "image/png"}
    images = [path.read_bytes() for path in sorted(SAMPLES.iterdir())]
    good = [Shot(post("/classify", headers, images[number % len(images)])) for number in range(98)]
    return [*good, Shot(post("/classify", headers, images[0][:60])), Shot(good[0].payload, hang_up=0.002)]


def _steps(pid: int, models: Path, following: Path, seconds: float) -> Iterator[Step]:
    shots, server = _shots(), psutil.Process(pid)
    closed_loop(PORT, shots[:98], 32, WORKER_SECONDS)
    # A connection takes 15 KB of a heap that keeps what it once had. In a moment of slowness an open loop has so many,
    # which is no growth.
    closed_loop(PORT, shots[:98], MAX_CONNECTIONS, WORKER_SECONDS)
    rate = SHARE * closed_loop(PORT, shots[:98], 32, 5.0).per_second
    sys.stderr.write(f"{rate:.0f} requests/s for {seconds / 60:.0f} minutes\n")
    began = swapped = time.monotonic()
    with httpx2.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
        while (at := time.monotonic() - began) < seconds:
            if time.monotonic() > swapped + SWAP_SECONDS:
                swapped = time.monotonic()
                _swap(client, models, following)
            before = _stolen_seconds()
            outcome = open_loop(PORT, shots, rate, STEP_SECONDS)
            stolen = (_stolen_seconds() - before) / (outcome.seconds * (psutil.cpu_count() or 1))
            time.sleep(0.2)  # what was in flight is answered
            codes: Counter[int] = outcome.statuses
            step = Step(
                at,
                float(resident(server)),
                outcome.quantile(0.5),
                outcome.quantile(0.99),
                codes[200],
                codes[429],
                codes[400],
                sum(count for code, count in codes.items() if code not in (200, 400, 429)),
                _standing(client),
                stolen,
            )
            sys.stderr.write(
                f"{at:6.0f} s  {step.resident / 2**20:6.1f} MiB  p99 {step.p99 * 1000:6.1f} ms  "
                f"stolen {step.stolen:4.0%}  {dict(codes)}\n"
            )
            yield step


def _stolen_seconds() -> float:
    """Of all cores since the start of this machine; 0 where its kernel does not count them."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def _swap(client: httpx2.Client, models: Path, following: Path) -> None:
    """Exchange the file of version 1 for another export of the same network, and load it.

    Networks of different sizes would make the memory go up and down with them, and hide what grows.
    """
    here, there = (folder / "digits" / "1" / "model.onnx" for folder in (models, following))
    spare = here.with_name("spare")
    shutil.move(here, spare)
    shutil.copy(there, here.with_name("new"))
    here.with_name("new").rename(here)
    shutil.move(spare, there)
    client.post("/v2/repository/models/digits/load").raise_for_status()


def _standing(client: httpx2.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith(tuple(f"{each} " for each in GAUGES)))


def _write(steps: list[Step], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Step._fields)
        writer.writerows([[round(value, 6) for value in step] for step in steps])


def _draw(steps: list[Step], path: Path) -> None:
    minutes = [step.at / 60 for step in steps]
    figure, (memory, latency, answers, host) = plt.subplots(4, 1, figsize=(9, 9), sharex=True, layout="constrained")
    memory.plot(minutes, [step.resident / 2**20 for step in steps])
    memory.set_ylabel("resident, MiB")
    memory.set_ylim(bottom=0)
    for label, values in (("p50", [step.p50 for step in steps]), ("p99", [step.p99 for step in steps])):
        latency.plot(minutes, [value * 1000 for value in values], label=label)
    latency.set_ylabel("latency, ms")
    latency.set_ylim(bottom=0)
    for label, counts in (
        ("200", [step.good for step in steps]),
        ("400, as sent", [step.bad for step in steps]),
        ("429", [step.refused for step in steps]),
        ("anything else", [step.failed for step in steps]),
    ):
        answers.plot(minutes, [count / STEP_SECONDS for count in counts], label=label)
    answers.set_ylabel("answers a second")
    host.plot(minutes, [step.stolen * 100 for step in steps], color="tab:gray")
    host.set_ylabel("taken by the host, %")
    host.set_ylim(bottom=0)
    host.set_xlabel("minutes; a version is replaced every five")
    for ax in (latency, answers):
        ax.legend(loc="upper right", fontsize=8)
    for ax in (memory, latency, answers, host):
        ax.grid(alpha=0.2)
    figure.savefig(path, dpi=100)


def _judge(steps: list[Step]) -> int:
    """Print each figure with its bound; 1 if one is broken."""
    measured = [step for step in steps if step.at >= WARM_SECONDS] or steps
    slope = float(np.polyfit([step.at / 3600 for step in measured], [step.resident for step in measured], 1)[0])
    quarter = max(1, len(measured) // 4)
    first, last = (float(np.median([step.p99 for step in part])) for part in (measured[:quarter], measured[-quarter:]))
    verdicts = {
        f"memory grows by {slope / 2**20:.2f} MiB an hour (bound {MAX_SLOPE / 2**20:.0f})": slope < MAX_SLOPE,
        f"p99 {first * 1000:.1f} ms in the first quarter, {last * 1000:.1f} in the last (bound {MAX_DRIFT} times)": last
        < MAX_DRIFT * first,
        f"{sum(step.failed for step in steps)} answers neither 200, 400 nor 429 (bound 0)": not any(
            step.failed for step in steps
        ),
        f"gauges at most {max(step.standing for step in steps):.0f} between the steps (bound 0)": not any(
            step.standing for step in steps
        ),
    }
    sys.stdout.write(f"{sum(step.good for step in steps):,} classifications in {steps[-1].at / 60:.0f} minutes\n")
    for text, kept in verdicts.items():
        sys.stdout.write(f"{'kept  ' if kept else 'BROKEN'} {text}\n")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
