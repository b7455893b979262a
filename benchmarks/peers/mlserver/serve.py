"""MLServer: one process speaks the Open Inference Protocol and batches, parallel workers decode and classify.

A worker for each core. Images come as base64 in JSON: MLServer has no binary tensors over HTTP. It sends a batch off
when its time is over, whether or not a worker is free; 2 ms gather what arrives together.
"""

import asyncio

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, ResponseOutput

from benchmarks.peers.common import HOST, MAX_BATCH_SIZE, TOP, free_port, open_model, port, workers

BATCH_SECONDS = 0.002


class Classifier(MLModel):
    """BYTES `[batch, 1]` -> labels and probabilities, `[batch, 5]` each."""

    async def load(self) -> bool:
        """Open the model in a worker."""
        self.model = open_model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Decode and classify a batch."""
        answers = self.model.classify(Base64Codec.decode_input(payload.inputs[0]))
        labels = [found["label"] for answer in answers for found in answer]
        probabilities = [[found["probability"] for found in answer] for answer in answers]
        outputs = [
            ResponseOutput(
                name="labels",
                datatype="BYTES",
                shape=[len(answers), TOP],
                data=labels,
                parameters=Parameters(content_type=StringCodec.ContentType),
            ),
            NumpyCodec.encode_output("probabilities", np.array(probabilities, np.float32)),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main() -> None:
    """Serve until told to stop."""
    settings = Settings(
        host=HOST,
        http_port=port(),
        grpc_port=free_port(),  # always served
        metrics_endpoint=None,
        parallel_workers=workers(),
        debug=False,
        gzip_enabled=False,
        load_models_at_startup=False,
    )
    model = ModelSettings(
        name="classifier",
        implementation=Classifier,
        max_batch_size=MAX_BATCH_SIZE,
        max_batch_time=BATCH_SECONDS,
    )
    server = MLServer(settings)
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main())
