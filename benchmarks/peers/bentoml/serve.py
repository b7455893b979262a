"""BentoML: each worker batches what it received, adaptively.

A worker for each core, which serves HTTP and classifies. The batched method is called directly with a list of one
image, in a form as BentoML wants files; a service of its own for single images in front of it would only add a process
and a hop. `max_latency_ms` is no wait but what BentoML may let a request take before it answers 503.
"""

import os
import sys
from pathlib import Path

os.environ["BENTOML_DO_NOT_TRACK"] = "True"

import bentoml

from benchmarks.peers.common import HOST, MAX_BATCH_SIZE, TIMEOUT_SECONDS, Prediction, open_model, port, workers


@bentoml.service(workers=workers(), traffic={"timeout": TIMEOUT_SECONDS}, logging={"access": {"enabled": False}})
class Classifier:
    """Files -> pixels -> labels."""

    def __init__(self) -> None:
        self.model = open_model()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=TIMEOUT_SECONDS * 1000)
    def classify(self, images: list[Path]) -> list[list[Prediction]]:
        """Decode and classify a batch."""
        return self.model.classify([image.read_bytes() for image in images])


if __name__ == "__main__":
    command = ["bentoml", "serve", "serve:Classifier", "--working-dir", os.path.dirname(__file__)]
    os.execv(sys.executable, [sys.executable, "-m", *command, "--host", HOST, "--port", str(port())])
