"""mosec: its Rust front queues and batches, one stage of workers decodes and classifies.

A worker for each core. One stage instead of mosec's usual two (decode, classify): with all cores busy, a second stage
would win nothing and send the pixels through a socket. 1 ms is mosec's least wait; 0 would mean its default of 10.
"""

import os
from typing import Any

from mosec import DecodingError, Server, Worker

from benchmarks.peers.common import HOST, MAX_BATCH_SIZE, TIMEOUT_SECONDS, Prediction, open_model, port, workers

WAIT_MS = 1


class Classifier(Worker):
    """Bytes -> pixels -> labels."""

    def __init__(self) -> None:
        self.model = open_model()

    def deserialize(self, data: bytes) -> Any:
        """Decode one image."""
        try:
            return self.model.pixels(data)
        except OSError as error:
            raise DecodingError from error

    def forward(self, data: list[Any]) -> list[list[Prediction]]:
        """Classify a batch."""
        return self.model.answers(data)


if __name__ == "__main__":
    os.environ |= {
        "MOSEC_ADDRESS": HOST,
        "MOSEC_PORT": str(port()),
        "MOSEC_TIMEOUT": str(TIMEOUT_SECONDS * 1000),
        "MOSEC_LOG_LEVEL": "warning",
    }
    server = Server()
    server.append_worker(Classifier, num=workers(), max_batch_size=MAX_BATCH_SIZE, max_wait_time=WAIT_MS)
    server.run()
