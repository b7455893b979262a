"""Histograms for Prometheus that cost little to feed, and take over what another process has counted.

The client library's own can do neither: an observation takes it twice as long, and nothing can be added to one.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Self

from prometheus_client import CollectorRegistry
from prometheus_client.core import Exemplar, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# An upper bound, how many values are not above it, and an exemplar of those.
Bucket = tuple[str, float] | tuple[str, float, Exemplar]


@dataclass(slots=True)
class Observed:
    """How many values were seen up to each bound and above the one before it, past the last one too; and their sum."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float = 0.0

    @classmethod
    def nothing(cls, bounds: Sequence[float]) -> Self:
        """No value yet."""
        return cls(tuple(bounds), [0] * (len(bounds) + 1))

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: "Observed") -> None:
        """Count what another one with the same bounds has."""
        self.counts = [own + others for own, others in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


class Series:
    """One series of a histogram. Any thread may feed it."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._observed = Observed.nothing(bounds)
        self._exemplars: dict[int, Exemplar] = {}
        self._lock = Lock()

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        """Count a value; its exemplar stands for its bucket until the next one does."""
        with self._lock:
            self._observed.observe(value)
            if exemplar:
                self._exemplars[bisect_left(self._observed.bounds, value)] = Exemplar(exemplar, value, time.time())

    def add(self, observed: Observed) -> None:
        """Count what another process has observed."""
        with self._lock:
            self._observed.add(observed)

    def buckets(self) -> tuple[list[Bucket], float]:
        """As the exposition wants them, and the sum."""
        with self._lock:
            observed = Observed(self._observed.bounds, list(self._observed.counts), self._observed.sum)
            exemplars = dict(self._exemplars)
        found: list[Bucket] = []
        below = 0
        for index, bound in enumerate((*observed.bounds, float("inf"))):
            below += observed.counts[index]
            le = floatToGoString(bound)  # type: ignore[no-untyped-call]
            found.append((le, float(below), exemplars[index]) if index in exemplars else (le, float(below)))
        return found, observed.sum


class Histogram(Collector):
    """A family of series with the same bounds, one for each combination of its labels' values."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """Like the client library's; `buckets` are the upper bounds, ascending, without infinity."""
        self._family = name, documentation, labels
        self._bounds = tuple(buckets)
        self._series: dict[tuple[str, ...], Series] = {}
        if not labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str | int) -> Series:
        """The series with these values of the labels; made when there is none."""
        key = tuple(map(str, values))
        return self._series.get(key) or self._series.setdefault(key, Series(self._bounds))

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The family without its series, for the registry to know the names."""
        name, documentation, labels = self._family
        return [HistogramMetricFamily(name, documentation, labels=labels)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The family as it stands."""
        name, documentation, labels = self._family
        family = HistogramMetricFamily(name, documentation, labels=labels)
        for values, series in list(self._series.items()):
            buckets, total = series.buckets()
            family.add_metric(list(values), buckets, total)
        return [family]
