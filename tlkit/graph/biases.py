"""Find the bias of every layer of a graph, and cut out the part of a graph that leads to a layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

MEAN = "/mean"  # what `part_graph` adds to the name of a convolution for its output's mean


class Bias(NamedTuple):
    """The constant that a node adds to its channels, the last axis of its output or the second of a convolution's."""

    node: str
    place: int  # of the constant among the node's inputs
    constant: str


def own_biases(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Bias]]:
    """Return a copy of a graph in which every layer has a bias of its own, and these biases in the order of the graph.

    A Conv or Gemm without a bias gets zeros; the bias of a MatMul is that of the Add behind it, if there is one.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    constants = {tensor.name: tensor for tensor in changed.graph.initializer}
    biases = []
    for node in changed.graph.node:
        if len(node.input) < 2 or node.input[1] not in constants:
            continue
        dims, layer, place = constants[node.input[1]].dims, node, 2
        if node.op_type == "MatMul":
            readers = [each for each in changed.graph.node if node.output[0] in each.input]
            if len(readers) != 1 or readers[0].op_type != "Add":
                continue
            layer, width = readers[0], dims[-1]
            place = 1 - list(layer.input).index(node.output[0])
        elif node.op_type in ("Conv", "Gemm"):
            by_rows = node.op_type == "Conv" or any(each.name == "transB" and each.i for each in node.attribute)
            width = dims[0 if by_rows else 1]
        else:
            continue
        if place == len(layer.input):
            layer.input.append("")
        if (name := layer.input[place]) and (name not in constants or list(constants[name].dims) != [width]):
            continue
        value = numpy_helper.to_array(constants[name]) if name else np.zeros(width, np.float32)
        biases.append(Bias(layer.name, place, f"{layer.name}/bias"))
        changed.graph.initializer.append(numpy_helper.from_array(value, biases[-1].constant))
        layer.input[place] = biases[-1].constant
    return changed, biases


def part_graph(model: onnx.ModelProto, layers: Iterable[str], held: Collection[str]) -> onnx.ModelProto:
    """Return the part of a graph from the tensors `held` to the outputs of the nodes `layers`.

    Its inputs are those of `held` that it reads, its outputs one per layer and then the tensors that it quantizes. Of a
    convolution's output it gives the mean over height and width, `(N, C, 1, 1)`.
    """
    graph = model.graph
    ends = [node for node in graph.node if node.name in set(layers)]
    nodes = nodes_to(graph, [node.output[0] for node in ends], held)
    pools = {
        node.name: helper.make_node("GlobalAveragePool", [node.output[0]], [f"{node.name}{MEAN}"])
        for node in ends
        if node.op_type == "Conv"
    }
    outputs = [pools[node.name].output[0] if node.name in pools else node.output[0] for node in ends]
    outputs += [node.output[0] for node in nodes if node.op_type == "QuantizeLinear"]
    read = {name for node in nodes for name in node.input}
    part = helper.make_graph(
        [*nodes, *pools.values()],
        "part",
        [onnx.ValueInfoProto(name=name) for name in sorted(read & set(held))],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [tensor for tensor in graph.initializer if tensor.name in read],
    )
    return helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)


def nodes_to(graph: onnx.GraphProto, tensors: Iterable[str], held: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes that compute `tensors` from the tensors `held`, in the order of the graph."""
    makers = {output: number for number, node in enumerate(graph.node) for output in node.output}
    waiting, found = list(tensors), set[int]()
    while waiting:
        name = waiting.pop()
        if name not in held and name in makers and makers[name] not in found:
            found.add(makers[name])
            waiting.extend(graph.node[makers[name]].input)
    return [graph.node[number] for number in sorted(found)]
