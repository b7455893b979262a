"""The torch side: trains, loads, converts and verifies ResNets. Its only product is the ONNX artifact."""

import service  # noqa: F401  silences onnxruntime before anything here imports it
