"""Where in an exported graph the network begins and ends: what lies outside it keeps float32 at every precision."""

import numpy as np
import onnx
from numpy.typing import NDArray

from service.artifact import FEATURES_NAME, LOGITS_NAME

Weights = NDArray[np.float32]


def outside_the_network(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes before the first convolution, and of those after the features.

    Without features (VGG) only the layer that gives the logits is outside.
    """
    nodes = list(model.graph.node)
    first = next(position for position, node in enumerate(nodes) if node.op_type == "Conv")
    return [node.name for node in nodes[:first]] + [node.name for node in _head_nodes(model)]


def _head_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that depend on the features, or the last one."""
    behind = {FEATURES_NAME} if _has_features(model) else set()
    found = []
    for node in model.graph.node:
        if behind & set(node.input) or (not behind and LOGITS_NAME in node.output):
            behind |= set(node.output)
            found.append(node)
    return found


def head_weights(model: onnx.ModelProto) -> tuple[Weights, Weights] | None:
    """Weight `[classes, channels]` and bias `[classes]` of the layer behind global average pooling, if there is one."""
    if not _has_features(model):
        return None
    last = next(node for node in model.graph.node if LOGITS_NAME in node.output)
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    weight, bias = (stored[name] for name in last.input[1:])
    transposed = next((each.i for each in last.attribute if each.name == "transB"), 0)
    return (weight if transposed else weight.T), bias


def _has_features(model: onnx.ModelProto) -> bool:
    return any(output.name == FEATURES_NAME for output in model.graph.output)
