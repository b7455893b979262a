"""What the GPUs of this machine are doing, read from the driver (NVML) at each scrape."""

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)


def watch_gpus(registry: CollectorRegistry) -> None:
    """Add the GPUs' series; without NVML there are none, and one line says so."""
    try:
        import pynvml  # noqa: PLC0415  comes with the extra gpu

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception as error:  # no library, no driver, or one that another container may not ask
        log.warning("no metrics of the GPU: %s", error)
        return
    registry.register(_Gpus(pynvml, handles))


class _Gpus(Collector):
    def __init__(self, nvml: object, handles: list[object]) -> None:
        self._nvml = nvml
        self._handles = handles

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample for each GPU; one that cannot be read has none."""
        used = GaugeMetricFamily("gpu_memory_used_bytes", "Memory taken on the GPU, by all processes.", labels=["gpu"])
        total = GaugeMetricFamily("gpu_memory_total_bytes", "Memory of the GPU.", labels=["gpu"])
        busy = GaugeMetricFamily("gpu_utilization_ratio", "Share of time with a kernel on the GPU.", labels=["gpu"])
        for index, handle in enumerate(self._handles):
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)  # type: ignore[attr-defined]
                rates = self._nvml.nvmlDeviceGetUtilizationRates(handle)  # type: ignore[attr-defined]
            except Exception:
                log.debug("GPU %d cannot be read", index, exc_info=True)
                continue
            used.add_metric([str(index)], memory.used)
            total.add_metric([str(index)], memory.total)
            busy.add_metric([str(index)], rates.gpu / 100)
        yield from (used, total, busy)
