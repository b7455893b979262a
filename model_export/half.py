"""float16: the network in half precision, its normalisation, its head, its inputs and its outputs as they were.

The pixels of a grey network pass through 2²⁴ on their way, which float16 cannot hold. The head costs nothing in
float32, and class activation maps then explain the logits exactly. onnxruntime's own converter is not used: what it is
told to leave in float32 it rounds to float16 and back between any two operators.
"""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_export.regions import outside_the_network

SUFFIX = "_half"


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float16 form of an exported float32 graph, with the same inputs and outputs."""
    half = onnx.ModelProto.FromString(model.SerializeToString())
    graph = half.graph
    names = set(outside_the_network(half))
    outside = [node for node in graph.node if node.name in names]
    inside = [node for node in graph.node if node.name not in names]
    entering = _outputs(outside) & _inputs(inside)
    leaving = _outputs(inside) & (_inputs(outside) | {output.name for output in graph.output})
    _halve_weights(graph, _inputs(inside))
    nodes = []
    for node in graph.node:
        given = sorted(set(node.output) & (entering | leaving))
        if node.name not in names:
            _rename(node, entering | leaving)
        nodes.append(node)
        nodes += [_cast(name, name + SUFFIX, TensorProto.FLOAT16) for name in given if name in entering]
        nodes += [_cast(name + SUFFIX, name, TensorProto.FLOAT) for name in given if name in leaving]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # types of before
    return half


def _inputs(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input}


def _outputs(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.output}


def _halve_weights(graph: onnx.GraphProto, used: set[str]) -> None:
    for tensor in graph.initializer:
        if tensor.name in used and tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))


def _rename(node: onnx.NodeProto, names: set[str]) -> None:
    for tensors in (node.input, node.output):
        for position, name in enumerate(tensors):
            if name in names:
                tensors[position] = name + SUFFIX


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)
