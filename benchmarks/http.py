"""What HTTP and decoding take, without and with workers: `python -m benchmarks.http`.

JPEGs are sent to `/classify`, and tensors, which need no decoding, by the Open Inference Protocol. On a GPU the network
leaves the cores to that. A network of one small matrix product does so on any machine. With `--network digits` it is a
ResNet-20 int8, which is asked in the ways that callers have: forms, connections that end, HTTP/1.0, photographs. Both
kinds of server take turns; prints a Markdown table with the medians of the rounds.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from benchmarks.load import Outcome, Shot, closed_loop
from benchmarks.subjects import SubjectError, serving
from benchmarks.workloads import CLASSES, FOLDER, WORKLOADS, form, jpegs, prepare, tensors
from model_export.errors import ExportError
from model_export.speed import processor
from service.cpus import available_cpus

PORT = 8191
NAME = "nothing"
SIDE, STRIDE = 224, 32
WARM_SECONDS = 3.0
IMAGES = 16
SMALL, LARGE = WORKLOADS["W1"], WORKLOADS["W2"]

Kinds = dict[str, list[Shot]]


@dataclass(frozen=True)
class Asked:
    """A network, as a model folder and in words, what is asked of it, by kind, and on how many connections."""

    title: str
    models: Callable[[], Path]
    kinds: Callable[[], Kinds]
    connections: tuple[int, ...]


def main() -> int:
    """Measure and print; the exit code."""
    options = _parser().parse_args()
    asked = NETWORKS[options.network]
    found: dict[tuple[str, int, int], list[tuple[Outcome, float, float]]] = defaultdict(list)
    try:
        models, kinds = asked.models(), asked.kinds()
        for number in range(options.rounds):
            for workers in (0, options.workers):
                print(f"round {number + 1} of {options.rounds}: {workers} workers …", file=sys.stderr)
                with serving(models, PORT, FOLDER / "http.log", "--http-workers", str(workers)) as (process, _):
                    closed_loop(PORT, next(iter(kinds.values())), asked.connections[-1], WARM_SECONDS)
                    for sent, connections in product(kinds, asked.connections):
                        took = _measured(process.pid, kinds[sent], connections, options.seconds)
                        found[sent, workers, connections].append(took)
    except (SubjectError, ExportError) as error:
        print(f"benchmarks.http: {error}", file=sys.stderr)
        return 1
    print(f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {available_cpus()} CPUs, {asked.title}\n")
    print("| sent | workers | connections | images/s | p50, ms | p99, ms | CPU of the server, ms | of workers, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for sent, workers, connections in product(kinds, (0, options.workers), asked.connections):
        rounds = found[sent, workers, connections]
        rates = ", ".join(f"{outcome.per_second:,.0f}" for outcome, _, _ in rounds)
        cells = [
            statistics.median(1e3 * outcome.quantile(0.5) for outcome, _, _ in rounds),
            statistics.median(1e3 * outcome.quantile(0.99) for outcome, _, _ in rounds),
            statistics.median(server for _, server, _ in rounds),
            statistics.median(others for _, _, others in rounds),
        ]
        print(f"| {sent} | {workers} | {connections} | {rates} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return 0


def _measured(pid: int, shots: list[Shot], connections: int, seconds: float) -> tuple[Outcome, float, float]:
    """What was answered, and ms of CPU of the server and of its workers for each."""
    before = _cpu_milliseconds(pid)
    outcome = closed_loop(PORT, shots, connections, seconds)
    if set(outcome.statuses) != {200}:
        raise SubjectError(f"it answers {dict(outcome.statuses)}")
    server, others = np.subtract(_cpu_milliseconds(pid), before) / len(outcome.latencies)
    return outcome, float(server), float(others)


def _cpu_milliseconds(pid: int) -> tuple[float, float]:
    """Of a server and of its workers."""
    server = psutil.Process(pid)
    taken = [sum(each.cpu_times()[:2]) * 1e3 for each in [server, *server.children()]]
    return taken[0], sum(taken[1:])


def _bodies() -> Kinds:
    images = jpegs(*LARGE.side, IMAGES)
    return {"500×375 JPEG": LARGE.shots(images), "tensor": tensors(images, NAME)}


def _callers() -> Kinds:
    """The ways to ask for the labels of a small image, and a photograph."""
    images = jpegs(*SMALL.side, IMAGES)
    shots = SMALL.shots(images)
    return {
        "image": shots,
        "form": [Shot(form("/classify", [("file", each)])) for each in images],
        "image, `Connection: close`": _in(shots, "HTTP/1.1\r\nConnection: close"),
        "image, HTTP/1.0, kept": _in(shots, "HTTP/1.0\r\nConnection: keep-alive"),
        "image, HTTP/1.0": _in(shots, "HTTP/1.0"),
        "500×375 JPEG": LARGE.shots(jpegs(*LARGE.side, IMAGES)),
    }


def _in(shots: list[Shot], version: str) -> list[Shot]:
    return [Shot(each.payload.replace(b"HTTP/1.1", version.encode(), 1)) for each in shots]


def _nothing() -> Path:
    """A model folder with a network that looks at every 32nd pixel."""
    folder = FOLDER / "models" / NAME
    size = SIDE // STRIDE
    weight = np.random.default_rng(0).normal(0, 1e-3, (size * size * 3, CLASSES)).astype(np.float32)
    slices = {"start": [0, 0], "end": [SIDE, SIDE], "axes": [1, 2], "steps": [STRIDE, STRIDE]}
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["images", *slices], ["few"]),
            helper.make_node("Cast", ["few"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        NAME,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [
            *(numpy_helper.from_array(np.array(each, dtype=np.int64), name) for name, each in slices.items()),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    path = folder / NAME / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    recipe = {"resize": 256, "crop": SIDE, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}
    config = {"labels": [f"class {each}" for each in range(CLASSES)], "preprocessing": recipe}
    (path.parent.parent / "config.json").write_text(json.dumps(config))
    return folder


NETWORKS = {
    "nothing": Asked(f"{SIDE}×{SIDE}", _nothing, _bodies, (8, 32, 128)),
    "digits": Asked("ResNet-20 int8", lambda: prepare(SMALL, FOLDER), _callers, (1, 32)),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="nothing", help="what is served (nothing)")
    parser.add_argument("--workers", type=int, default=available_cpus(), help="of the server with workers (the CPUs)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load (4)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
