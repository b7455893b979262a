"""What a model has done since it was loaded, as the statistics extension of the Open Inference Protocol counts it."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Duration:
    """How often something happened and how long it took in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.ns += round(seconds * 1e9)

    def sum(self, other: "Duration") -> None:
        """All of another's."""
        self.count += other.count
        self.ns += other.ns

    def to_json(self) -> dict[str, int]:
        """As the protocol writes it."""
        return {"count": self.count, "ns": self.ns}


@dataclass
class Statistics:
    """Written by the device thread, read by the event loop; a reader may be one batch behind."""

    last_inference_ms: int = 0
    inferences: int = 0
    executions: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    batches: dict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))

    def ran(self, queued: Sequence[float], seconds: float, *, failed: bool) -> None:
        """A batch of `len(queued)` images, which had waited so many seconds each, took `seconds` on the device."""
        self.last_inference_ms = round(time.time() * 1000)
        for waited in queued:
            (self.fail if failed else self.success).add(waited + seconds)
            self.queue.add(waited)
            self.infer.add(seconds)
        if not failed:
            self.inferences += len(queued)
            self.executions += 1
            self.batches[len(queued)].add(seconds)

    def sum(self, other: "Statistics") -> None:
        """What another process has done beside."""
        self.last_inference_ms = max(self.last_inference_ms, other.last_inference_ms)
        self.inferences += other.inferences
        self.executions += other.executions
        for own, others in (
            (self.success, other.success),
            (self.fail, other.fail),
            (self.queue, other.queue),
            (self.infer, other.infer),
            *((self.batches[size], each) for size, each in other.batches.items()),
        ):
            own.sum(others)
