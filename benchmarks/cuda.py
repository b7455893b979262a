"""What each way of running a ResNet on a GPU brings: onnxruntime's options, one after the other, beside torch's ways.

    python -m benchmarks.cuda [--networks resnet50 resnet18] [--precisions fp16 fp32] [--sizes 1 8 32 128]

Every way gets what a server has, uint8 pixels `[n, 224, 224, 3]` in the host's memory, and gives what a server needs,
float32 logits there. Ways take turns. Prints Markdown: medians of images/s, and how far the logits are from those of
onnxruntime on the CPU in float32. `--device cpu` has the ways that need no GPU, which proves the benchmark.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from benchmarks.ceilings import ENGINES, runs_in_turns
from benchmarks.workloads import CLASSES, FOLDER, Workload, checkpoint, prepare
from model_export.catalog import find_architecture
from model_export.errors import ExportError
from model_export.graph import served
from model_export.images import Pixels, noise
from model_export.speed import processor
from model_export.verify import card_of
from service.artifact import INPUT_NAME, LOGITS_NAME
from service.cpus import available_cpus
from service.runtime import Device, Options, load_libraries, open_onnx, providers_of
from service.tensorrt import engine_options

SIDE = 224
# A CUDA graph is captured by the first run and replayed from the next one on.
WARM_RUNS = 3

Run = Callable[[Pixels], NDArray[np.float32]]

# Of the CUDA provider, beside what the service asks of it, or instead.
EXHAUSTIVE = {"cudnn_conv_algo_search": "EXHAUSTIVE"}
NHWC = {"prefer_nhwc": "1"}
FUSED_BIAS = {"fuse_conv_bias": "1"}
GRAPH = {"enable_cuda_graph": "1"}


@dataclass(frozen=True)
class Subject:
    """A network at one precision, as a checkpoint and as an artifact, and the images of a run on a device."""

    architecture: str
    precision: str
    weights: Path
    artifact: Path
    pixels: Pixels
    device: Device


@dataclass(frozen=True)
class Way:
    """A way to run a subject: `open` makes it ready; so many threads run it at once."""

    name: str
    open: Callable[[Subject], Run]
    threads: int = 1


def main() -> int:
    """Measure and print; the exit code."""
    options = _parser().parse_args()
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print("benchmarks.cuda: torch finds no GPU; --device cpu measures the ways that need none", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name() if on_gpu else processor()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {name}, onnxruntime {ort.__version__}, torch {torch.__version__}")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # as the service has it: it rounds to 10 bits of mantissa
    try:
        for architecture in options.networks:
            for precision in options.precisions:
                _compare(architecture, precision, options)
    except ExportError as error:
        print(f"benchmarks.cuda: {error}", file=sys.stderr)
        return 1
    return 0


def _compare(architecture: str, precision: str, options: argparse.Namespace) -> None:
    float32 = open_onnx(_artifact(architecture, "fp32"), "cpu", available_cpus())
    artifact = _artifact(architecture, precision)
    rates: dict[str, dict[int, float]] = defaultdict(dict)
    off: dict[str, float] = defaultdict(float)
    for size in options.sizes:
        pixels = noise(size, SIDE)
        subject = Subject(architecture, precision, checkpoint(architecture, FOLDER), artifact, pixels, options.device)
        expected = float32.run(pixels).logits
        _progress(f"{architecture} {precision}, batches of {size}: opening")
        ready = dict(_opened(subject))
        for way, run in ready.items():
            difference = np.abs(run(pixels) - expected).max() / np.abs(expected).max()
            off[way.name] = max(off[way.name], float(difference))
        _progress(f"{architecture} {precision}, batches of {size}: measuring")
        works = {way.name: (partial(run, pixels), way.threads) for way, run in ready.items()}
        for name, runs in runs_in_turns(works, options.seconds).items():
            rates[name][size] = size * runs
    _print_table(f"{architecture} {precision}", rates, off, options.sizes)


def _opened(subject: Subject) -> Iterator[tuple[Way, Run]]:
    """The ways that there are here, warm; a line for each of the others."""
    for way in WAYS + (WAYS_OF_GPUS if subject.device == "cuda" else ()):
        try:
            run = way.open(subject)
            for _ in range(WARM_RUNS):
                run(subject.pixels)
        except Exception as error:  # whatever a provider, a compiler or a driver has to say
            _progress(f"{way.name} is left out: {str(error).strip().partition(chr(10))[0]}")
            continue
        yield way, run


def _as_served(subject: Subject) -> Run:
    """As the service runs it: the pixels go to the session as they are."""
    backend = open_onnx(subject.artifact, subject.device, available_cpus())
    return lambda pixels: backend.run(pixels).logits


def _bound(options: Options, subject: Subject, *, pinned: bool = False) -> Run:
    """Input and output stay at one place on the device; copied to and from there, from pinned memory if asked for."""
    session = _session(subject, options)
    size = len(subject.pixels)
    images = ort.OrtValue.ortvalue_from_shape_and_type(list(subject.pixels.shape), np.uint8, subject.device, 0)
    logits = ort.OrtValue.ortvalue_from_shape_and_type([size, CLASSES], np.float32, subject.device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT_NAME, images)
    binding.bind_ortvalue_output(LOGITS_NAME, logits)
    staged = torch.empty(subject.pixels.shape, dtype=torch.uint8, pin_memory=pinned).numpy()

    def run(pixels: Pixels) -> NDArray[np.float32]:
        np.copyto(staged, pixels)
        images.update_inplace(staged)
        session.run_with_iobinding(binding)
        return np.asarray(logits.numpy())

    return run


def _tensorrt(subject: Subject) -> Run:
    """As the service runs it there, by an engine that is built for this size of batches."""
    size = len(subject.pixels)
    options = engine_options(subject.artifact, size, ENGINES / str(size))
    backend = open_onnx(subject.artifact, "tensorrt", available_cpus(), options=options)
    return lambda pixels: backend.run(pixels).logits


def _session(subject: Subject, options: Options) -> ort.InferenceSession:
    """With these options beside those of the service, or instead."""
    if subject.device != "cpu":
        load_libraries(subject.device)
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = available_cpus()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = providers_of(subject.device, options)
    session = ort.InferenceSession(subject.artifact, settings, providers=providers, enable_fallback=0)
    if session.get_providers()[0] != providers[0][0]:
        raise RuntimeError(f"onnxruntime put it on {session.get_providers()[0]}")
    return session


def _torch(subject: Subject, *, channels_last: bool = False, compiled: bool = False) -> Run:
    """torch on the same device; below float32 by autocast, compiled with CUDA graphs where there is a GPU."""
    network = find_architecture(subject.architecture).build(CLASSES)
    network.load_state_dict(torch.load(subject.weights, weights_only=True))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = served(network, card_of(subject.artifact).preprocessing).eval().to(subject.device)
    model.network.to(memory_format=memory_format)  # type: ignore[call-overload]
    called = torch.compile(model, mode="reduce-overhead", dynamic=False) if compiled else model
    half = torch.autocast(subject.device, torch.float16, enabled=subject.precision == "fp16")
    staged = torch.empty(subject.pixels.shape, dtype=torch.uint8, pin_memory=subject.device == "cuda")

    def run(pixels: Pixels) -> NDArray[np.float32]:
        staged.copy_(torch.from_numpy(pixels))
        with torch.inference_mode(), half:
            logits, _ = called(staged.to(subject.device, non_blocking=True))
            return np.asarray(logits.float().cpu().numpy())

    return run


WAYS: tuple[Way, ...] = (
    Way("session, as served", _as_served),
    Way("session, two runs at once", _as_served, threads=2),
    Way("session, IO binding", partial(_bound, {})),
    Way("torch, eager", _torch),
    Way("torch, channels_last", partial(_torch, channels_last=True)),
    Way("torch, channels_last, compiled", partial(_torch, channels_last=True, compiled=True)),
)
WAYS_OF_GPUS: tuple[Way, ...] = (
    Way("session, pinned memory", partial(_bound, {}, pinned=True)),
    Way("session, pinned, exhaustive search", partial(_bound, EXHAUSTIVE, pinned=True)),
    Way("session, pinned, prefer_nhwc", partial(_bound, NHWC, pinned=True)),
    Way("session, pinned, fuse_conv_bias", partial(_bound, FUSED_BIAS, pinned=True)),
    Way("session, pinned, CUDA graph", partial(_bound, GRAPH, pinned=True)),
    Way("session, pinned, the last three", partial(_bound, NHWC | FUSED_BIAS | GRAPH, pinned=True)),
    Way("session, TensorRT", _tensorrt),
)


def _artifact(architecture: str, precision: str) -> Path:
    models = {architecture: (architecture, precision)}
    workload = Workload(f"{architecture}-{precision}", f"{architecture} {precision}", models, (500, 375), lambda _: [])
    return prepare(workload, FOLDER) / architecture / "1" / "model.onnx"


def _print_table(
    title: str, rates: Mapping[str, Mapping[int, float]], off: Mapping[str, float], sizes: Sequence[int]
) -> None:
    print(f"\n## {title}\n")
    print("| images/s | " + " | ".join(f"batch {size}" for size in sizes) + " | largest difference, relative |")
    print("| --- |" + " ---: |" * (len(sizes) + 1))
    for name, found in sorted(rates.items()):
        cells = (f"{found[size]:,.0f}" if size in found else "" for size in sizes)
        print(f"| {name} | " + " | ".join(cells) + f" | {off[name]:.1e} |")
    best = {ours: _best(rates, ours) for ours in ("session", "torch")}
    print(f"\nthe best session has {best['session'] / best['torch']:.2f} of the best of torch", flush=True)


def _best(rates: Mapping[str, Mapping[int, float]], whose: str) -> float:
    return max(rate for name, found in rates.items() if name.startswith(whose) for rate in found.values())


def _progress(line: str) -> None:
    print(f"{line} …", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description="Ways of running a ResNet on a GPU.")
    parser.add_argument("--networks", nargs="+", default=["resnet50", "resnet18"], help="(resnet50 resnet18)")
    parser.add_argument("--precisions", nargs="+", default=["fp16", "fp32"], help="(fp16 fp32)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 8, 32, 128], help="of batches (1 8 32 128)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn (0.5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where (cuda)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
