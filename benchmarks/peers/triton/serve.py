"""Triton, as pytriton ships it: its own HTTP front and dynamic batcher, and Python functions that classify.

A function, with its session, for each core: they are threads of one process, and onnxruntime, simplejpeg and Pillow
release the interpreter's lock while they work. No queue delay: a free function takes what is queued.

Encoded images are small, so they go from Triton to the functions in messages; pytriton's way for large tensors, shared
memory, fails where the interpreter inside its wheel is older than the standard library of the environment.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["PYTRITON_NO_TENSORSTORE"] = "1"

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.common import HOST, MAX_BATCH_SIZE, TOP, open_model, port, workers


def classifier() -> Callable[..., Any]:
    """BYTES `[batch, 1]` -> labels and probabilities, `[batch, 5]` each."""
    model = open_model()

    @batch
    def classify(image: Any) -> dict[str, Any]:
        answers = model.classify(image[:, 0].tolist())
        labels = [[found["label"].encode() for found in answer] for answer in answers]
        probabilities = [[found["probability"] for found in answer] for answer in answers]
        return {"labels": np.array(labels, dtype=object), "probabilities": np.array(probabilities, np.float32)}

    return classify


if __name__ == "__main__":
    configuration = TritonConfig(
        http_address=HOST, http_port=port(), allow_grpc=False, allow_metrics=False, exit_timeout_secs=5
    )
    with Triton(config=configuration, workspace=Path(tempfile.mkdtemp(), "workspace")) as triton:
        triton.bind(
            model_name="classifier",
            infer_func=[classifier() for _ in range(workers())],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="labels", dtype=bytes, shape=(TOP,)),
                Tensor(name="probabilities", dtype=np.float32, shape=(TOP,)),
            ],
            config=ModelConfig(max_batch_size=MAX_BATCH_SIZE, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
