"""What TorchServe's workers run: a batch of requests -> the five most probable labels for each."""

from typing import Any

from benchmarks.peers.common import Prediction, open_model


class Classifier:
    """TorchServe's interface of a custom handler."""

    def initialize(self, context: Any) -> None:
        """Open the model in a worker."""
        self.model = open_model()

    def handle(self, data: list[dict[str, bytearray]], context: Any) -> list[list[Prediction]]:
        """Decode and classify a batch."""
        return self.model.classify([bytes(request["body"]) for request in data])
