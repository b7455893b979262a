"""What the hardware allows: onnxruntime alone, decoding alone, and both together, with nothing of a server around.

The combined ceiling on a CPU is 1 / (1 / model rate + 1 / decode rate), both with all cores: every core does nothing
but decode and compute, and no image waits. With a GPU both go on side by side, and it is the lower of the two rates.
"""

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.workloads import FOLDER
from model_export.verify import card_of
from service.artifact import ModelCard
from service.costs import Arrangement
from service.cpus import available_cpus
from service.image import preprocess
from service.runtime import Device, OnnxBackend, open_onnx
from service.tensorrt import engine_options

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
LARGER_ON_GPU = (64, 128)
# Where TensorRT keeps what it has built.
ENGINES = FOLDER / "tensorrt"
SECONDS = 0.5
ROUNDS = 3
MAX_PIXELS = 2**26
Way = TypeVar("Way")


@dataclass(frozen=True)
class Ceiling:
    """Images a second: of the model by (arrangement, batch size), of decoding on all cores, and of both together.

    `apart`: the model does not compute on the cores that decode.
    """

    model: dict[tuple[Arrangement, int], float]
    decode: float
    apart: bool

    @property
    def best_model(self) -> float:
        """At the best arrangement and batch size."""
        return max(self.model.values())

    @property
    def combined(self) -> float:
        """Of a machine that does nothing else; without decoding for tensors."""
        if not self.decode:
            return self.best_model
        return min(self.best_model, self.decode) if self.apart else 1 / (1 / self.best_model + 1 / self.decode)


def median_of(rounds: Sequence[Ceiling]) -> Ceiling:
    """Each rate's median: the best of a dozen rates that were taken once is the luckiest one of an uneven machine."""
    model = {key: statistics.median(each.model[key] for each in rounds) for key in rounds[0].model}
    return Ceiling(model, statistics.median(each.decode for each in rounds), rounds[0].apart)


def measure(path: Path, encoded: bytes | None, device: Device = "cpu") -> Ceiling:
    """Measure a model, and the decoding of an image for it if there is one."""
    cores = available_cpus()
    options = engine_options(path, LARGER_ON_GPU[-1], ENGINES) if device == "tensorrt" else None
    backend = open_onnx(path, device, cores, spread=True, options=options)
    card = card_of(path)
    apart = backend.device != "cpu"
    rates = {
        (arrangement, size): _model_rate(backend, card, arrangement, lanes, size)
        for arrangement, lanes in backend.lanes.items()
        for size in BATCH_SIZES + (LARGER_ON_GPU if apart else ())
    }
    backend.close()
    return Ceiling(rates, decode_rate(path, encoded, cores) if encoded else 0.0, apart)


def _model_rate(backend: OnnxBackend, card: ModelCard, arrangement: Arrangement, lanes: int, size: int) -> float:
    blank = np.zeros((size, card.input.height, card.input.width, 3), dtype=np.uint8)

    def run() -> None:
        backend.run(blank, arrangement=arrangement)

    run()
    return size * runs_a_second(run, lanes)


def runs_a_second(work: Callable[[], object], threads: int, seconds: float = SECONDS) -> float:
    """Of work that so many threads do side by side, for so long at least and once each at least."""
    counts = [0] * threads
    began = time.perf_counter()

    def repeat(thread: int) -> None:
        while not counts[thread] or time.perf_counter() < began + seconds:
            work()
            counts[thread] += 1

    workers = [threading.Thread(target=repeat, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - began)


def runs_in_turns(works: Mapping[Way, tuple[Callable[[], object], int]], seconds: float) -> dict[Way, float]:
    """Runs a second of each work, by so many threads: medians of ROUNDS, in each of which all take their turn."""
    rounds = [
        {way: runs_a_second(work, threads, seconds) for way, (work, threads) in works.items()} for _ in range(ROUNDS)
    ]
    return {way: statistics.median(each[way] for each in rounds) for way in works}


def decode_rate(path: Path, encoded: bytes, cores: int) -> float:
    """Images a second that so many cores decode for a model."""
    # Processes: what a thread of Python would wait for the interpreter's lock is not the decoder's.
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        return sum(pool.starmap(_decode_alone, [(path, encoded)] * cores, chunksize=1))


def _decode_alone(path: Path, encoded: bytes) -> float:
    card = card_of(path)
    return runs_a_second(lambda: preprocess(encoded, card.preprocessing, MAX_PIXELS), threads=1)
