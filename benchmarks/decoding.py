"""What NVIDIA's decoder brings beside the one that is served: JPEGs on the GPU, and what that does to the answers.

    python -m benchmarks.decoding [--sizes 1 8 32 128] [--device cpu]

Every way gets encoded images in the host's memory and gives what a session takes, uint8 pixels `[n, 224, 224, 3]`
there. What nvImageCodec decodes is copied to the host and resized as it is served. Ways take turns. Prints Markdown:
medians of images/s, how far the pixels are from Pillow's, and how far that moves the logits of a ResNet-50, beside the
tolerance of its golden images. `--device cpu` has nvImageCodec without a GPU, which proves the benchmark.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ceilings import MAX_PIXELS, ROUNDS, decode_rate, runs_in_turns
from benchmarks.workloads import FOLDER, WORKLOADS, jpegs, prepare
from model_export.errors import ExportError
from model_export.speed import processor
from model_export.verify import card_of
from service.artifact import ModelCard, Preprocessing
from service.cpus import available_cpus
from service.image import fit, preprocess
from service.runtime import open_onnx

COMPARED = 32
WIDTH, HEIGHT = 500, 375
# libjpeg-turbo's accurate transform and smooth upsampling, which training libraries have.
EXACT = ":fancy_upsampling=1 libjpeg_turbo:fast_idct=0"
KINDS = {
    "cuda": ("HYBRID_CPU_GPU", "GPU_ONLY", "HW_GPU_ONLY"),
    "cpu": ("CPU_ONLY",),
}

Batch = Sequence[bytes]
Decode = Callable[[Batch], NDArray[np.uint8]]


@dataclass(frozen=True)
class Decoder:
    """A way to decode; `pixels` gives `[n, 224, 224, 3]`, `alone` leaves images where they are, to be resized there."""

    name: str
    pixels: Decode
    alone: Callable[[Batch], object] | None = None


@dataclass(frozen=True)
class Difference:
    """Of pixels from Pillow's, in 255ths, and of logits from those of Pillow's pixels, as a part of what is allowed."""

    pixels: int
    mean: float
    logits: float


def main() -> int:
    """Measure and print; the exit code."""
    options = _parser().parse_args()
    workload = WORKLOADS["W4f"]
    try:
        artifact = prepare(workload, FOLDER) / "resnet50" / "1" / "model.onnx"
    except ExportError as error:
        print(f"benchmarks.decoding: {error}", file=sys.stderr)
        return 1
    card = card_of(artifact)
    images = jpegs(WIDTH, HEIGHT, max(options.sizes))
    with ThreadPoolExecutor(available_cpus()) as pool:
        decoders = list(_decoders(card.preprocessing, pool, options.device, images))
        _progress("comparing")
        differences = _differences(decoders, artifact, card, images[:COMPARED])
        rates = _rates(decoders, images, options.sizes, options.seconds)
    processes = statistics.median(decode_rate(artifact, images[0], available_cpus()) for _ in range(ROUNDS))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {available_cpus()} cores, {WIDTH}×{HEIGHT} JPEG\n")
    _print_table(rates, differences, options.sizes)
    print(f"\na process for each core, as workers are: {processes:,.0f} images/s")
    _print_verdict(rates, differences, processes)
    return 0


def _decoders(recipe: Preprocessing, pool: ThreadPoolExecutor, device: str, images: Batch) -> Iterator[Decoder]:
    """Those that there are here, warm; a line for each of the others."""
    served = partial(preprocess, recipe=recipe, max_pixels=MAX_PIXELS)
    yield Decoder("as served, a thread a core", lambda batch: np.stack(list(pool.map(served, batch))))
    for kind in KINDS[device]:
        name = f"nvImageCodec, {kind}"
        try:
            decoder = _nvidia(name, kind, recipe, pool)
            decoder.pixels(images[:1])
        except Exception as error:  # whatever a library, a driver or a device has to say
            _progress(f"{name} is left out: {str(error).strip().partition(chr(10))[0]}")
            continue
        yield decoder


def _nvidia(name: str, kind: str, recipe: Preprocessing, pool: ThreadPoolExecutor) -> Decoder:
    from nvidia import nvimgcodec

    on_gpu = kind != "CPU_ONLY"
    codec = nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CURRENT if on_gpu else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        backends=[nvimgcodec.Backend(getattr(nvimgcodec.BackendKind, kind))],
        options=EXACT,
    )

    def decode(batch: Batch) -> list[Any]:
        decoded = codec.decode(list(batch))
        if any(each is None for each in decoded):
            raise RuntimeError(f"{kind} does not decode these images")
        return list(decoded)

    def pixels(batch: Batch) -> NDArray[np.uint8]:
        on_host = [np.asarray(each.cpu()) for each in decode(batch)]
        return np.stack(list(pool.map(partial(fit, recipe=recipe), on_host)))

    def alone(batch: Batch) -> None:
        decode(batch)
        if on_gpu:
            torch.cuda.synchronize()

    return Decoder(name, pixels, alone)


def _differences(decoders: Sequence[Decoder], artifact: Path, card: ModelCard, images: Batch) -> dict[str, Difference]:
    """By decoder. The network runs on the CPU in float32, so that nothing else differs."""
    session = open_onnx(artifact, "cpu", available_cpus())
    exact = np.stack([preprocess(each, card.preprocessing, MAX_PIXELS) for each in images])
    expected = session.run(exact).logits
    allowed = card.parity.allowed(expected) if card.parity else 0.0
    found = {}
    for decoder in decoders:
        pixels = decoder.pixels(images)
        off = np.abs(pixels.astype(int) - exact)
        moved = float(np.abs(session.run(pixels).logits - expected).max())
        found[decoder.name] = Difference(int(off.max()), float(off.mean()), moved / allowed)
    return found


def _rates(
    decoders: Sequence[Decoder], images: Batch, sizes: Sequence[int], seconds: float
) -> dict[str, dict[int, float]]:
    """Images a second by way and batch size, medians of rounds in turns."""
    ways: dict[str, Callable[[Batch], object]] = {each.name: each.pixels for each in decoders}
    ways |= {f"{each.name}, decoded only": each.alone for each in decoders if each.alone}
    rates: dict[str, dict[int, float]] = defaultdict(dict)
    for size in sizes:
        _progress(f"batches of {size}")
        works = {name: (partial(way, images[:size]), 1) for name, way in ways.items()}
        for name, runs in runs_in_turns(works, seconds).items():
            rates[name][size] = size * runs
    return rates


def _print_table(
    rates: Mapping[str, Mapping[int, float]], differences: Mapping[str, Difference], sizes: Sequence[int]
) -> None:
    sized = " | ".join(f"batch {size}" for size in sizes)
    print(f"| images/s | {sized} | pixels differ, at most | on average | logits, of the tolerance |")
    print("| --- |" + " ---: |" * (len(sizes) + 3))
    for name, found in rates.items():
        off = differences.get(name)
        cells = [f"{found[size]:,.0f}" for size in sizes]
        cells += [str(off.pixels), f"{off.mean:.3f}", f"{off.logits:.2f}"] if off else ["", "", ""]
        print(f"| {name} | {' | '.join(cells)} |")


def _print_verdict(
    rates: Mapping[str, Mapping[int, float]], differences: Mapping[str, Difference], processes: float
) -> None:
    """A decoder is worth having where it is faster than the cores are, and no golden image would be refused for it."""
    worth = [
        name
        for name, off in differences.items()
        if off.logits <= 1 and max(rates[name].values()) > processes and not name.startswith("as served")
    ]
    print(f"faster than that, with logits inside the tolerance: {', '.join(worth) or 'none'}", flush=True)


def _progress(line: str) -> None:
    print(f"{line} …", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description="Ways of decoding JPEGs.")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 8, 32, 128], help="of batches (1 8 32 128)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn (0.5)")
    parser.add_argument("--device", choices=tuple(KINDS), default="cuda", help="where (cuda)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
