"""What the hardware allows, what this server reaches and what its peers reach, in one run: `make bench`.

    python -m benchmarks [--workloads W1,W2] [--peers all] [--rounds 3] [--seconds 4]

Servers take turns within each round, and with the ceilings, so that a machine that slows down slows all of them. Prints
Markdown: medians of the rounds with their ranges. Answers are checked before anything is timed.
"""

import argparse
import json
import signal
import statistics
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from benchmarks.ceilings import ENGINES, LARGER_ON_GPU, MAX_PIXELS, Ceiling, measure, median_of
from benchmarks.load import Outcome, Shot, closed_loop, open_loop
from benchmarks.peers.catalog import PEERS, Peer
from benchmarks.peers.environment import PeerUnavailable, running
from benchmarks.peers.environment import prepare as install
from benchmarks.subjects import SubjectError, Usage, serving
from benchmarks.workloads import FOLDER, WORKLOADS, Workload, jpegs, post, prepare
from model_export.errors import ExportError
from model_export.speed import processor
from model_export.verify import card_of
from service.cpus import available_cpus
from service.image import preprocess
from service.runtime import open_onnx

ENVIRONMENTS = Path(".venv-peers")
PORT = 8190
OURS = "resnet-service"
CONNECTIONS = (1, 8, 32, 128)
SHARES = (0.5, 0.7, 0.8, 0.9)
# An open loop is set by the closed loop with so many connections.
CAPACITY_CONNECTIONS = {"cpu": 32, "cuda": 128, "tensorrt": 128}
# The batches that the ceilings have, too.
LARGER_BATCHES = ["--max-batch-size", str(LARGER_ON_GPU[-1])]
IMAGES = 16
WARM_SECONDS = 1.0


class Loaded(NamedTuple):
    """A running server: who it is, what it is asked, and its processes."""

    name: str
    shots: list[Shot]
    usage: Usage
    start_seconds: float


@dataclass(frozen=True)
class Figure:
    """One measurement: a server under one load in one round."""

    outcome: Outcome
    cpu_seconds: float
    peak_mebibytes: float
    start_seconds: float

    @property
    def cpu_a_request(self) -> float:
        """Seconds of CPU time of the server's processes for each answer."""
        return self.cpu_seconds / max(1, len(self.outcome.latencies))


Figures = dict[tuple[str, str], list[Figure]]


def main() -> int:
    """Measure and print; the exit code."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `finally`, which ends the servers
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {available_cpus()} CPUs, onnxruntime {onnxruntime.__version__}"
    )
    try:
        for name in options.workloads.split(","):
            workload = WORKLOADS[name]
            _workload(workload if options.device == "cpu" else workload.on_gpu(), options)
    except (ExportError, SubjectError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        print(f"benchmarks: there is no {error}; workloads: {', '.join(WORKLOADS)}", file=sys.stderr)
        return 2
    return 0


def _workload(workload: Workload, options: argparse.Namespace) -> None:
    models = prepare(workload, FOLDER)
    first = models / next(iter(workload.models)) / "1" / "model.onnx"
    images = jpegs(*workload.side, IMAGES)
    print(f"\n## {workload.name}: {workload.title}\n", flush=True)
    servers: dict[str, Callable[[], object]] = {OURS: lambda: _ours(OURS, workload, models, images, options.device)}
    if options.http_workers and workload.classify:
        name, flags = f"{OURS}, {options.http_workers} workers", ("--http-workers", str(options.http_workers))
        servers[name] = lambda: _ours(name, workload, models, images, options.device, *flags)
    for peer in _peers(options.peers) if workload.classify else []:
        servers |= _installed(peer, first, images)
    figures: Figures = defaultdict(list)
    ceilings: list[Ceiling] = []
    for number in range(options.rounds):
        if len(workload.models) == 1:  # of several at once there is none
            _progress(f"{workload.name}, round {number + 1} of {options.rounds}: ceilings")
            ceilings.append(measure(first, None if workload.tensors else images[0], options.device))
        for name, start in servers.items():
            _progress(f"{workload.name}, round {number + 1} of {options.rounds}: {name}")
            try:
                with start() as server:  # type: ignore[attr-defined]
                    _measure(server, options, figures)
            except PeerUnavailable as reason:
                print(f"- {name} is left out: {str(reason).partition(chr(10))[0]}", flush=True)
    ceiling = median_of(ceilings) if ceilings else None
    if ceiling is not None:
        _print_ceiling(ceiling, [each.combined for each in ceilings])
    _print_figures(figures, workload, ceiling)


@contextmanager
def _ours(
    name: str, workload: Workload, models: Path, images: list[bytes], device: str, *flags: str
) -> Iterator[Loaded]:
    flags = ("--device", device, *(LARGER_BATCHES if device != "cpu" else []), *flags)
    if device == "tensorrt":
        flags += ("--tensorrt-cache", str(ENGINES))
    with serving(models, PORT, FOLDER / f"{workload.name}.log", *flags) as (process, seconds):
        if workload.classify:
            _check(models / next(iter(workload.models)) / "1" / "model.onnx", images)
        usage = Usage(process.pid)
        try:
            yield Loaded(name, workload.shots(images), usage, seconds)
        finally:
            usage.stop()


def _check(model: Path, images: list[bytes]) -> None:
    """The server's first label is that of onnxruntime alone, for every image."""
    backend, card = open_onnx(model, "cpu", 1), card_of(model)
    for image in images:
        logits = backend.run(preprocess(image, card.preprocessing, MAX_PIXELS)[np.newaxis]).logits[0]
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}/classify", image, {"Content-Type": "image/jpeg"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            label = json.load(answer)["predictions"][0]["label"]
        if label != card.labels[int(logits.argmax())]:
            raise SubjectError(f"it answers {label} where onnxruntime finds {card.labels[int(logits.argmax())]}")


def _installed(peer: Peer, model: Path, images: list[bytes]) -> dict[str, Callable[[], object]]:
    try:
        environment = install(peer, ENVIRONMENTS)
    except PeerUnavailable as reason:
        print(f"- {peer.name} is left out: {reason}", flush=True)
        return {}
    return {peer.version: lambda: _theirs(peer, environment, model, images)}


@contextmanager
def _theirs(peer: Peer, environment: Path, model: Path, images: list[bytes]) -> Iterator[Loaded]:
    requests = [peer.request(image) for image in images]
    with running(peer, environment, model, PORT) as process:
        usage = Usage(process.pid)
        try:
            yield Loaded(peer.version, [Shot(post(*request)) for request in requests], usage, float("nan"))
        finally:
            usage.stop()


def _measure(server: Loaded, options: argparse.Namespace, figures: Figures) -> None:
    closed_loop(PORT, server.shots, 8, WARM_SECONDS)
    capacity = 0.0
    for connections in options.connections:
        figure = _figure(server, lambda: closed_loop(PORT, server.shots, connections, options.seconds))  # noqa: B023
        figures[server.name, f"{connections} connection{'s' * (connections > 1)}"].append(figure)
        if connections == CAPACITY_CONNECTIONS[options.device]:
            capacity = figure.outcome.per_second
    for share in SHARES if options.open and capacity else ():
        figure = _figure(server, lambda: open_loop(PORT, server.shots, share * capacity, options.seconds))  # noqa: B023
        figures[server.name, f"open loop, {share:.0%} of capacity"].append(figure)


def _figure(server: Loaded, load: Callable[[], Outcome]) -> Figure:
    before = server.usage.cpu_seconds()
    outcome = load()
    cpu = server.usage.cpu_seconds() - before
    return Figure(outcome, cpu, server.usage.peak_mebibytes, server.start_seconds)


def _print_ceiling(ceiling: Ceiling, of_rounds: Sequence[float]) -> None:
    """The medians; the best combination of each single round beside the one of the medians."""
    print("\n| onnxruntime alone, images/s | " + " | ".join(f"batch {size}" for size in _sizes(ceiling)) + " |")
    print("| --- |" + " ---: |" * len(_sizes(ceiling)))
    for arrangement in dict.fromkeys(arrangement for arrangement, _ in ceiling.model):
        rates = (f"{ceiling.model[arrangement, size]:,.0f}" for size in _sizes(ceiling))
        print(f"| cores {arrangement} | " + " | ".join(rates) + " |")
    decode = f"decoding and resizing alone, all cores: {ceiling.decode:,.0f} images/s; " if ceiling.decode else ""
    single = ", ".join(f"{each:,.0f}" for each in of_rounds)
    print(
        f"\n{decode}combined ceiling: **{ceiling.combined:,.0f} images/s** (of single rounds: {single})\n", flush=True
    )


def _sizes(ceiling: Ceiling) -> list[int]:
    return sorted({size for _, size in ceiling.model})


def _print_figures(figures: Figures, workload: Workload, ceiling: Ceiling | None) -> None:
    print("\n| server | load | images/s | of the ceiling | p50, ms | p99, ms | CPU, ms a request | peak, MiB | other |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for (name, load), rounds in sorted(figures.items(), key=lambda each: _order(each[0])):
        rates = [each.outcome.per_second * workload.images for each in rounds]
        cells = [
            _middle(rates, 0),
            f"{statistics.median(rates) / ceiling.combined:.2f}" if ceiling else "",
            _middle([each.outcome.quantile(0.5) * 1000 for each in rounds], 2),
            _middle([each.outcome.quantile(0.99) * 1000 for each in rounds], 2),
            f"{statistics.median(each.cpu_a_request for each in rounds) * 1000:.2f}",
            f"{max(each.peak_mebibytes for each in rounds):.0f}",
            _others(rounds),
        ]
        print(f"| {name} | {load} | " + " | ".join(cells) + " |")
    starts = [each.start_seconds for (name, _), rounds in figures.items() if name == OURS for each in rounds]
    print(f"\n{OURS}: start to ready {statistics.median(starts):.2f} s (median)", flush=True)


def _order(key: tuple[str, str]) -> tuple[bool, int, bool, str]:
    name, load = key
    number = int("".join(filter(str.isdigit, load)))
    return load.startswith("open"), number, name != OURS, name


def _middle(values: Sequence[float], digits: int) -> str:
    """The median, and the range where there is one."""
    text = f"{statistics.median(values):,.{digits}f}"
    return f"{text} ({min(values):,.{digits}f} to {max(values):,.{digits}f})" if len(values) > 1 else text


def _others(rounds: list[Figure]) -> str:
    """Whatever was not answered with 200."""
    found: dict[str, int] = defaultdict(int)
    for each in rounds:
        for status, count in each.outcome.statuses.items():
            if status != 200:
                found[str(status or "no answer")] += count
        if each.outcome.hung_up:
            found["given up"] += each.outcome.hung_up
    return ", ".join(f"{what}: {count}" for what, count in sorted(found.items()))


def _peers(names: str) -> list[Peer]:
    if names == "none":
        return []
    return list(PEERS.values()) if names == "all" else [PEERS[name] for name in names.split(",")]


def _progress(line: str) -> None:
    print(f"{line} …", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="This server, its peers, the hardware.")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="by commas (all)")
    parser.add_argument("--peers", default="none", help=f"none, all, or by commas of {', '.join(PEERS)} (none)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load (4)")
    parser.add_argument("--connections", type=_numbers, default=CONNECTIONS, help="of closed loops (1,8,32,128)")
    parser.add_argument("--device", choices=("cpu", "cuda", "tensorrt"), default="cpu", help="of this server (cpu)")
    parser.add_argument("--http-workers", type=int, default=0, metavar="N", help="this server with N workers, too (0)")
    parser.add_argument("--open", action="store_true", help="open loops too, at 50, 70, 80 and 90 %% of capacity")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
