"""Ray Serve: a proxy spreads the requests over replicas, each of which batches its own.

A replica for each core. The batch runs in a thread, so that the replica still answers the proxy's questions about its
queue; without that the router backs off. No wait for a batch: what came while the last one ran is the next one.
"""

import asyncio
import os

os.environ |= {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.common import HOST, MAX_BATCH_SIZE, Prediction, open_model, port, workers

# One batch runs, the next one and some gather.
MAX_ONGOING_REQUESTS = 4 * MAX_BATCH_SIZE
OBJECT_STORE_BYTES = 2**27


@serve.deployment(num_replicas=workers(), max_ongoing_requests=MAX_ONGOING_REQUESTS, ray_actor_options={"num_cpus": 1})
class Classifier:
    """Bytes -> pixels -> labels."""

    def __init__(self) -> None:
        self.model = open_model()

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0)
    async def classify(self, images: list[bytes]) -> list[list[Prediction]]:
        """Decode and classify a batch."""
        return await asyncio.to_thread(self.model.classify, images)

    async def __call__(self, request: Request) -> list[Prediction]:
        """Classify one image."""
        return await self.classify(await request.body())


if __name__ == "__main__":
    ray.init(num_cpus=workers(), include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
    serve.start(http_options={"host": HOST, "port": port()})
    serve.run(Classifier.bind(), blocking=True)
