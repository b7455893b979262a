"""What is measured of requests, in which buckets; and what a worker has measured and its server has not heard of."""

from dataclasses import dataclass, field

from service.histogram import Observed
from service.statistics import Statistics

STAGES = ("decode", "queue", "inference", "respond")
# 100 µs to 10 s: a GPU's batch and an overloaded CPU's queue both fall between two bounds, not past the last one.
SECONDS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
PROBABILITIES = tuple(tenth / 10 for tenth in range(1, 11))


@dataclass
class ModelTally:
    """What a worker did with one load of a model; images by the index of their most probable class."""

    classes: dict[int, int] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)

    def answered(self, index: int) -> None:
        """One more request, of an image of this class."""
        self.classes[index] = self.classes.get(index, 0) + 1


@dataclass
class Tally:
    """What a worker has measured; `models` by the number of their load. Its memory is what it has now."""

    requests: Observed = field(default_factory=lambda: Observed.nothing(SECONDS))
    stages: dict[str, Observed] = field(default_factory=lambda: {stage: Observed.nothing(SECONDS) for stage in STAGES})
    batches: Observed = field(default_factory=lambda: Observed.nothing(BATCH_SIZES))
    confidence: Observed = field(default_factory=lambda: Observed.nothing(PROBABILITIES))
    models: dict[int, ModelTally] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    resident_bytes: int = 0

    def batch(self, number: int, queued: list[float], seconds: float) -> None:
        """A batch of images, which had waited so many seconds each, took `seconds`."""
        self.batches.observe(len(queued))
        for waited in queued:
            self.stages["queue"].observe(waited)
        self.stages["inference"].observe(seconds)
        self.models.setdefault(number, ModelTally()).statistics.ran(queued, seconds, failed=False)

    def answer(self, number: int, timing: dict[str, float], index: int, probability: float) -> None:
        """A request was answered: with which class, how sure, and when its stages (`Exchange.timing`) ended."""
        self.models.setdefault(number, ModelTally()).answered(index)
        self.confidence.observe(probability)
        self.requests.observe(timing["total"])
        self.stages["respond"].observe(timing["respond"])
        if timing["decode"]:  # a tensor is not decoded
            self.stages["decode"].observe(timing["decode"])
