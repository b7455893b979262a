"""int8: static quantisation of an exported graph with QuantizeLinear and DequantizeLinear pairs (QDQ).

Weights are int8, one scale a channel. Activations are uint8 for CPUs, whose dot products take unsigned by signed bytes
(with int8 activations, onnxruntime's default, ResNet-50 hardly gains), and int8, symmetric, for TensorRT. CPUs without
VNNI add two such products in 16 bits and saturate, so for them weights have 7 bits: measured on the digits under an
emulated Haswell, logits are up to 19 % off with 8 bits and 1.4 % with 7, the same as on a CPU with VNNI.
The layers outside the network (model_export/regions.py) stay float32.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import calibrate, qdq_loss_debug
from tqdm import tqdm

from model_export.images import Pixels
from model_export.regions import outside_the_network
from service.artifact import INPUT_NAME, CalibrationMethod, Int8Target, LayerError

# TensorRT fuses the rest by itself, and asks for no pair that it would have to undo.
OPERATORS = {
    "cpu": ["Conv", "Gemm", "Relu", "Add", "MaxPool", "Reshape", "Transpose"],
    "cpu-avx2": ["Conv", "Gemm", "Relu", "Add", "MaxPool", "Reshape", "Transpose"],
    "tensorrt": ["Conv", "Gemm", "Add", "MaxPool"],
}
# Activations of a batch are all in memory at once: as many images as have the pixels of four at 224 × 224.
PIXELS_AT_ONCE = 4 * 224 * 224
LAYER_IMAGES = 8
_METHODS = {
    "minmax": quantization.CalibrationMethod.MinMax,
    "entropy": quantization.CalibrationMethod.Entropy,
    "percentile": quantization.CalibrationMethod.Percentile,
}
# The library's 128 bins leave entropy a single threshold to choose, the largest value.
_OPTIONS: Mapping[str, dict[str, Any]] = {
    "minmax": {},
    "entropy": {"num_bins": 512, "num_quantized_bins": 128},
    "percentile": {"num_bins": 2048, "percentile": 99.99},
}


@dataclass(frozen=True)
class Ranges:
    """The smallest and largest value of each activation, as one calibration method sees them."""

    method: CalibrationMethod
    tensors: calibrate.TensorsData


class _Once(quantization.CalibrationDataReader):  # type: ignore[misc]  # the library is not typed
    """One batch of pixels `[n, H, W, 3]` as the graph's input."""

    def __init__(self, batch: Pixels) -> None:
        self._left = [{INPUT_NAME: batch}]

    def get_next(self) -> dict[str, Pixels] | None:
        """The batch, and then nothing."""
        return self._left.pop() if self._left else None


def _batches(pixels: Pixels) -> list[Pixels]:
    """Pixels `[n, H, W, 3]`, a few images at a time."""
    size = max(1, PIXELS_AT_ONCE // (pixels.shape[1] * pixels.shape[2]))
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]


def find_ranges(model: Path, pixels: Pixels, method: CalibrationMethod, target: Int8Target, scratch: Path) -> Ranges:
    """Run the float32 graph over the calibration images, pixels `[n, H, W, 3]`, with a progress bar.

    Args:
        model: the graph in its integer form.
        pixels: the calibration images.
        method: minmax takes the whole range, percentile cuts 0.01 %, entropy cuts where the distribution suffers least.
        target: ranges for TensorRT are symmetric.
        scratch: a folder for the instrumented graph.
    """
    options = _OPTIONS[method] | {"symmetric": target == "tensorrt"}
    with _quiet():
        calibrator = quantization.create_calibrator(
            model,
            OPERATORS[target],
            augmented_model_path=str(scratch / "calibrating.onnx"),
            calibrate_method=_METHODS[method],
            extra_options=options,
        )
    for batch in tqdm(_batches(pixels), f"calibrating ({method})", unit="batch", leave=False):
        with _quiet():
            calibrator.collect_data(_Once(batch))
    with _quiet():
        return Ranges(method, calibrator.compute_data())


def quantise(model: Path, ranges: Ranges, target: Int8Target, out: Path) -> None:
    """Write the int8 form of a float32 graph in its integer form."""
    cache = out.with_suffix(".ranges.json")
    calibrate.save_tensors_data(ranges.tensors, cache)
    symmetric = target == "tensorrt"
    float32 = onnx.load(model)
    pixels = _pixels(float32)
    options: dict[str, Any] = {"ActivationSymmetric": symmetric, "WeightSymmetric": True}
    if pixels is not None:
        whole_numbers = {"rmin": np.float32(-pixels.centre), "rmax": np.float32(255 - pixels.centre)}
        options["TensorQuantOverrides"] = {pixels.float32: [whole_numbers]}
    # TensorRT quantises weights by itself from an explicit pair, adds biases in float32, and fuses by the node.
    if symmetric:
        options |= {"AddQDQPairToWeight": True, "DedicatedQDQPair": True, "QuantizeBias": False}
    with _quiet():
        quantization.quantize_static(
            model,
            out,
            None,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS[target],
            per_channel=True,
            reduce_range=target == "cpu-avx2",
            activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=outside_the_network(float32),
            calibrate_method=_METHODS[ranges.method],
            extra_options=options,
            calibration_cache_path=cache,
        )
    if pixels is not None:
        graph = onnx.load(out)
        _take_as_they_are(graph.graph, pixels)
        onnx.save(graph, out)


@dataclass(frozen=True)
class _Pixels:
    """What the first convolution reads (`integer_form.PixelBlocks`): the tensor's names before and after float32."""

    uint8: str
    float32: str
    centre: float


def _pixels(model: onnx.ModelProto) -> _Pixels | None:
    """Nothing where the network reads normalised images."""
    centre = next((each for each in model.graph.initializer if each.name == "normalisation.centre"), None)
    if centre is None:
        return None
    made_by = {output: node for node in model.graph.node for output in node.output}
    less = next(node for node in model.graph.node if centre.name in node.input)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    return _Pixels(made_by[less.input[0]].input[0], first.input[0], float(onnx.numpy_helper.to_array(centre)))


def _take_as_they_are(graph: onnx.GraphProto, pixels: _Pixels) -> None:
    """Leave out the way of the pixels to float32 and back, by which each comes to itself."""
    made_by = {output: node for node in graph.node for output in node.output}
    back = next(node for node in graph.node if pixels.float32 in node.input)
    following = next(node for node in graph.node if back.output[0] in node.input)
    following.input[0] = pixels.uint8
    node = back
    while node.output[0] != pixels.uint8:
        graph.node.remove(node)
        node = made_by[node.input[0]]
    used = {name for node in graph.node for name in node.input}
    for tensor in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(tensor)


def layer_errors(model: Path, quantised: Path, pixels: Pixels, scratch: Path) -> tuple[LayerError, ...]:
    """How far each convolution's output, ReLU included, is from float32's on a few images; in the graph's order."""
    some = _batches(pixels[:LAYER_IMAGES])[0]
    expected = _activations(model, ["Conv", "Relu", "Add"], some, scratch)
    got = _activations(quantised, ["DequantizeLinear"], some, scratch)
    errors = []
    for layer, tensor in _layers(onnx.load(model)).items():
        found = next((got[name] for name in (f"{tensor}_DequantizeLinear_Output", tensor) if name in got), None)
        if found is not None and tensor in expected:
            ratio = qdq_loss_debug.compute_signal_to_quantization_noice_ratio(expected[tensor], found)
            errors.append(LayerError(layer=layer, sqnr_db=round(ratio, 2)))
    return tuple(errors)


def _activations(model: Path, operators: list[str], pixels: Pixels, scratch: Path) -> dict[str, list[np.ndarray]]:
    augmented = str(scratch / "activations.onnx")
    qdq_loss_debug.modify_model_output_intermediate_tensors(model, augmented, operators)
    found: dict[str, list[np.ndarray]] = qdq_loss_debug.collect_activations(augmented, _Once(pixels))
    return found


def _layers(model: onnx.ModelProto) -> dict[str, str]:
    """Each convolution's name in the checkpoint, and the tensor behind it and its ReLU."""
    behind = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Relu"}
    return {
        node.input[1].removeprefix("network.").removesuffix(".weight"): behind.get(node.output[0], node.output[0])
        for node in model.graph.node
        if node.op_type == "Conv"
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library prints its progress and logs advice on steps that are done elsewhere."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
