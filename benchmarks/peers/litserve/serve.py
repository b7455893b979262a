"""LitServe: API servers hand the bytes to workers, which take what is queued, decode and classify it.

A worker for each core, and as many API servers, which is LitServe's advice; ZeroMQ for the answers, which it advises
above 100 requests a second. A batch timeout of 0, its default, makes idle workers poll without pause: they would take
from the API servers the cores that they need. With 1 ms they sleep.
"""

from typing import Annotated, Any

import litserve
from fastapi import Body

from benchmarks.peers.common import HOST, MAX_BATCH_SIZE, TIMEOUT_SECONDS, Prediction, open_model, port, workers

BATCH_TIMEOUT_SECONDS = 0.001


class Classifier(litserve.LitAPI):
    """Bytes -> pixels -> labels."""

    def setup(self, device: str) -> None:
        """Load the model in a worker."""
        self.model = open_model()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        """Decode one image."""
        return self.model.pixels(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Leave the stacking to the model."""
        return inputs

    def predict(self, x: list[Any]) -> list[list[Prediction]]:
        """Classify a batch."""
        return self.model.answers(x)

    def unbatch(self, output: list[list[Prediction]]) -> list[list[Prediction]]:
        """It is a list already."""
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_SECONDS)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=workers(), timeout=TIMEOUT_SECONDS, fast_queue=True
    )
    server.run(host=HOST, port=port(), log_level="warning", generate_client_file=False, access_log=False)
