"""The serving side: ONNX classifiers behind HTTP. Never imports torch."""

import os

# Since 1.29 onnxruntime's builds for Linux report each session to Microsoft, by the names of file and graph and by a
# digest of the weights. This is read once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
