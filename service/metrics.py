"""Every Prometheus series of the service (contract section 6), built from a registry argument.

Stages are recorded where they end. Gauges that count live things read them at scrape time, so they cannot get stuck.
No label takes a value that a caller chooses.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from service.artifact import ModelCard
from service.costs import Costs
from service.errors import ERRORS
from service.histogram import Histogram
from service.tally import BATCH_SIZES, PROBABILITIES, SECONDS, STAGES, Tally

DEVICE_FAILURES = ("run_failed", "out_of_memory", "hung", "lost")
CACHE_RESULTS = ("hit", "miss", "coalesced")
MAX_LABELS = 1000
NO_MODEL = "none"
OTHER_LABEL = "other"


# A second series for each of ours that no rule ever reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The series of one server process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Counter(
            "classify_requests",
            "Classification requests by HTTP status.",
            ["model", "version", "code"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "classify_request_seconds",
            "From the request's headers to the answer's first byte.",
            buckets=SECONDS,
            registry=registry,
        ).labels()
        self._stage_seconds = Histogram(
            "classify_stage_seconds", "Time in each stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "classify_batch_size", "Images in each batch that ran.", buckets=BATCH_SIZES, registry=registry
        ).labels()
        self._rejected = Counter(
            "classify_rejected",
            "Requests and images without an answer, by error code.",
            ["reason"],
            registry=registry,
        )
        self._predictions = Counter(
            "classify_predictions",
            "Images by their most probable label.",
            ["model", "label"],
            registry=registry,
        )
        self._confidence = Histogram(
            "classify_confidence",
            "Probability of the most probable label.",
            buckets=PROBABILITIES,
            registry=registry,
        ).labels()
        self._model_info = Gauge(
            "model_info",
            "1 for each model in service.",
            ["model", "version", "architecture", "precision", "device"],
            registry=registry,
        )
        self._model_load_seconds = Gauge(
            "model_load_seconds", "From opening the file to ready.", ["model", "version"], registry=registry
        )
        self._load_failures = Counter(
            "model_load_failures",
            "Loads that failed, by reason; the version in service, if there is one, goes on.",
            ["model", "version", "reason"],
            registry=registry,
        )
        self._golden_diff = Gauge(
            "model_golden_max_abs_diff",
            "Largest difference from the trained model's logits at the last replay.",
            ["model", "version"],
            registry=registry,
        )
        self._batch_seconds = Gauge(
            "model_batch_seconds",
            "What a batch took at warm-up with every lane busy, or a large one is expected to, for the sizes that pay.",
            ["model", "version", "batch_size"],
            registry=registry,
        )
        self._device_failures = Counter(
            "device_failures",
            "Runs that failed, by what it means; after hung and lost the process, or the worker, ends.",
            ["kind"],
            registry=registry,
        )
        self._cache_lookups = Counter(
            "classify_cache_lookups",
            "Images by what the result cache had of them: a hit, a miss, or another caller's on its way (coalesced).",
            ["result"],
            registry=registry,
        )
        self._cache_bytes = Gauge("classify_cache_bytes", "Bytes of kept results.", registry=registry)
        self._shadow_images = Counter(
            "shadow_images",
            "Images shown to a shadow version, by whether its top label agreed, or it was shed or failed.",
            ["model", "version", "result"],
            registry=registry,
        )
        self._shadow_seconds = Histogram(
            "shadow_seconds",
            "Decoding, queue and inference of the images that a shadow was shown, for both versions.",
            ["model", "version", "role"],
            buckets=SECONDS,
            registry=registry,
        )
        self._ready = Gauge("service_ready", "1 while /health/ready answers 200.", registry=registry)
        self._queue_depth = Gauge(
            "classify_queue_depth", "Images admitted and waiting for the device.", registry=registry
        )
        self._in_flight = Gauge("classify_images_in_flight", "Images admitted and not yet answered.", registry=registry)
        self._http_workers = Gauge("service_http_workers", "Processes that answer beside this one.", registry=registry)
        self._http_worker_cpu = Counter(
            "service_http_worker_cpu_seconds",
            "CPU time of these processes, and of those that ended.",
            registry=registry,
        )
        self._http_worker_memory = Gauge(
            "service_http_worker_resident_memory_bytes",
            "Resident memory of these processes; what they share is counted for each.",
            registry=registry,
        )
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        # Series that exist from the start let an alert tell "never happened" from "not scraped".
        self._stages = {stage: self._stage_seconds.labels(stage) for stage in STAGES}
        for kind in DEVICE_FAILURES:
            self._device_failures.labels(kind)
        for result in CACHE_RESULTS:
            self._cache_lookups.labels(result)
        for error in ERRORS:
            self._rejected.labels(error.code)
        self._labels: dict[str, set[str]] = {}
        self._children: dict[tuple[Counter, tuple[str | int, ...]], Counter] = {}

    def stage(self, name: str, seconds: float) -> None:
        """Record the end of one of STAGES."""
        self._stages[name].observe(seconds)

    def rejected(self, code: str) -> None:
        """Count a request or an image that ended in the error `code`."""
        self._rejected.labels(code).inc()

    def device_failed(self, kind: str) -> None:
        """Count a run that failed, by one of DEVICE_FAILURES."""
        self._device_failures.labels(kind).inc()

    def predicted(self, model: str, label: str, probability: float) -> None:
        """Count an image's most probable label and its probability."""
        self._count_label(model, label)
        self._confidence.observe(probability)

    def _count_label(self, model: str, label: str, images: int = 1) -> None:
        known = label if label in self._labels[model] else OTHER_LABEL
        self._child(self._predictions, model, known).inc(images)

    def add(self, tally: Tally) -> None:
        """Count what a worker has measured; what it says of each model is for `add_answers`, and of its memory for
        `watch_workers`."""
        self._http_worker_cpu.inc(tally.cpu_seconds)
        self._request_seconds.add(tally.requests)
        self._confidence.add(tally.confidence)
        self.batch_size.add(tally.batches)
        for stage, observed in tally.stages.items():
            self._stages[stage].add(observed)

    def add_answers(self, model: str, version: int, images_by_label: Mapping[str, int]) -> None:
        """Count requests that a worker has answered, an image each."""
        self._child(self._requests, model, str(version), 200).inc(sum(images_by_label.values()))
        for label, images in images_by_label.items():
            self._count_label(model, label, images)

    def watch_workers(self, count: Callable[[], int], resident_bytes: Callable[[], int]) -> None:
        """Read from these functions, at each scrape, how many workers answer, and what memory all have."""
        self._http_workers.set_function(count)
        self._http_worker_memory.set_function(resident_bytes)

    def _child(self, counter: Counter, *labels: str | int) -> Counter:
        """The series with these labels; looking it up by `labels()` takes longer than counting."""
        child = self._children.get((counter, labels))
        if child is None:
            child = self._children[counter, labels] = counter.labels(*labels)
        return child

    def looked_up(self, result: str) -> None:
        """Count an image by one of CACHE_RESULTS."""
        self._cache_lookups.labels(result).inc()

    def shadowed(self, model: str, version: int, result: str) -> None:
        """Count an image for a shadow: agreed, disagreed, shed or failed."""
        self._shadow_images.labels(model, version, result).inc()

    def shadow_took(self, model: str, version: int, role: str, seconds: float) -> None:
        """Record what an image took the `primary` that answered it, and the `shadow`."""
        self._shadow_seconds.labels(model, version, role).observe(seconds)

    def watch_cache(self, held: Callable[[], int]) -> None:
        """Read the size of the result cache from this function at each scrape."""
        self._cache_bytes.set_function(held)

    def watch_readiness(self, ready: Callable[[], bool]) -> None:
        """Read readiness from this function at each scrape."""
        self._ready.set_function(ready)

    def watch(self, waiting: Callable[[], int], in_flight: Callable[[], int]) -> None:
        """Read the live gauges from these functions at each scrape."""
        self._queue_depth.set_function(waiting)
        self._in_flight.set_function(in_flight)

    def in_service(self, model: str, version: int, card: ModelCard, device: str) -> None:
        """Announce a model that is taken into service."""
        self._model_info.labels(model, version, card.architecture, card.precision, device).set(1)
        known = self._labels.setdefault(model, set())
        known.update(card.labels[: MAX_LABELS - len(known)])

    def loaded(self, model: str, version: int, seconds: float, golden_max_abs_diff: float | None) -> None:
        """Record how long a load took and how its golden replay, if there was one, ended."""
        self._model_load_seconds.labels(model, version).set(seconds)
        if golden_max_abs_diff is not None:
            self._golden_diff.labels(model, version).set(golden_max_abs_diff)

    def out_of_service(self, model: str, version: int) -> None:
        """Forget the gauges of a version that is no longer served."""
        for gauge in (self._model_info, self._model_load_seconds, self._golden_diff, self._batch_seconds):
            gauge.remove_by_labels({"model": str(model), "version": str(version)})

    def load_failed(self, model: str, version: int, reason: str) -> None:
        """Count a load that failed; the reason is `golden` where it does not answer as it was trained, or `other`."""
        self._load_failures.labels(model, version, reason).inc()

    def costs(self, model: str, version: int, costs: Costs) -> None:
        """Record what the batches of a model cost at warm-up."""
        for cost in costs.table:
            if cost.used:
                self._batch_seconds.labels(model, version, cost.size).set(cost.seconds)

    def answered(self, model: str, version: str, status: int, seconds: float, trace_id: str = "") -> None:
        """Count a finished classification request; its trace, if it has one, becomes the exemplar of its bucket."""
        self._child(self._requests, model, version, status).inc()
        self._request_seconds.observe(seconds, {"trace_id": trace_id} if trace_id else None)
