"""How long a batch takes in onnxruntime, for several artifacts measured in turns.

In turns, because a machine's speed drifts: what is measured one after the other compares the minutes as much as the
files.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from model_export.images import Pixels, noise
from service.cpus import available_cpus
from service.runtime import OnnxBackend, open_onnx

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
ROUNDS = 5
# A round of a small network is repeated until it is long against the clock and the scheduler.
ROUND_SECONDS = 0.05

Seconds = dict[int, float]


def measure(
    artifacts: Mapping[str, Path],
    size: int,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    rounds: int = ROUNDS,
    threads: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Seconds]:
    """Median seconds of one run on the CPU, by artifact and batch size.

    Args:
        artifacts: files by a name for each, all for images of `size` pixels a side.
        size: the input's height and width.
        batch_sizes: in which order they are measured.
        rounds: how many turns each artifact gets.
        threads: of onnxruntime; the CPUs granted to this process when 0.
        progress: called with a line for each batch size.
    """
    backends = {name: open_onnx(path, "cpu", threads or available_cpus()) for name, path in artifacts.items()}
    found: dict[str, Seconds] = {name: {} for name in artifacts}
    for batch in batch_sizes:
        progress(f"measuring batches of {batch}")
        pixels = noise(batch, size)
        repeats = {name: _repeats(backend, pixels) for name, backend in backends.items()}
        turns = [
            {name: _seconds(backend, pixels, repeats[name]) for name, backend in backends.items()}
            for _ in range(rounds)
        ]
        for name in artifacts:
            found[name][batch] = median(turn[name] for turn in turns)
    return found


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # only Linux has it
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _repeats(backend: OnnxBackend, pixels: Pixels) -> int:
    backend.run(pixels)  # the first run allocates
    return max(1, int(ROUND_SECONDS / _seconds(backend, pixels, 1)))


def _seconds(backend: OnnxBackend, pixels: Pixels, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        backend.run(pixels)
    return (time.perf_counter() - started) / repeats
