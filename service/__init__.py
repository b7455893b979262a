"""The serving side: ONNX classifiers behind HTTP. Never imports torch."""
