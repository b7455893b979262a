"""The torch side: trains, loads, converts and verifies ResNets. Its only product is the ONNX artifact."""
