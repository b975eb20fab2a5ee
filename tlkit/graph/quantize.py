"""Quantize graphs to int8 with QDQ nodes, in the flavor of a runtime.

Weights are int8 with one scale per channel, without which depthwise convolutions lose all accuracy. Other differences
between runtimes are in a `Flavor`. The quantizer is ONNX Runtime's own.

One file is one model on every processor. Without VNNI, x86 multiplies uint8 by int8 with an instruction that adds two
neighboring products in 16 bits (`vpmaddubsw`), and saturates: a sum is then whatever fits. `weight_scales` chooses
each channel's scale so that no two neighbors can exceed it, and sums are exact everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from tlkit.graph import layout

LEVELS = 127  # of a weight on either side of zero
WEIGHTED = ("Conv", "Gemm", "MatMul")  # the layers that can be left in float one by one
# An activation is fused with the layer before it, whose output then has the range of the activation: otherwise the six
# units of ReLU6 would get a few levels only. No Mul and no Sub: they are the normalization, which stays float.
ACTIVATIONS = ("Clip", "Relu")
OPERATORS = (*WEIGHTED, *ACTIVATIONS, "Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool")


@dataclass(frozen=True, slots=True)
class Flavor:
    """Form of int8 for a runtime: the type of activations, and other options of ONNX Runtime's quantizer.

    `channels_last`: its convolutions read channels last, and the first nodes are rearranged for it (see `layout`).
    """

    activations: QuantType
    channels_last: bool
    options: Mapping[str, bool] = field(default_factory=dict)


FLAVORS = {
    # ONNX Runtime's CPU: uint8 with a zero point, so that the output of a ReLU has all 256 levels; int32 biases.
    "int8": Flavor(QuantType.QUInt8, channels_last=True),
    # TensorRT: symmetric int8 and float biases; it parses no other.
    "int8-symmetric": Flavor(
        QuantType.QInt8,
        channels_last=False,
        options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    ),
}


def layers(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the operators with weights, in order."""
    return tuple(node.name for node in graph.graph.node if node.op_type in WEIGHTED)


def layer_names(graph: onnx.ModelProto) -> dict[str, str]:
    """Return names for people of the `layers`: stage, block and operator, as in "stage3 / block 2 / depthwise conv".

    They follow from the names of the weights; where these say nothing, the node's own name stands.
    """
    weights = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
    names: dict[str, str] = {}
    for node in graph.graph.node:
        if node.op_type in WEIGHTED:
            path = node.input[1].rpartition("stages.")[2].split(".")[:-1] if "stages." in node.input[1] else []
            name = _layer_name(path, node, weights.get(node.input[1], [])) or node.name
            names[node.name] = node.name if name in names.values() else name
    return names


def _layer_name(path: list[str], node: onnx.NodeProto, dims: list[int]) -> str:
    """Return the name of a layer whose weight has this path of modules behind the trunk's stages."""
    if not path:
        return ""
    groups = {each.name: each.i for each in node.attribute}.get("group", 1)
    operator = "conv" if node.op_type == "Conv" else "linear"
    words = [word for word in path[1:] if not word.isdecimal() and word != operator]
    depthwise = groups > 1 and dims[:1] == [groups]
    if depthwise and "depthwise" not in words:
        words.append("depthwise")
    if not any(operator in word for word in words):
        words.append(operator)
    blocks = [f"block {int(word) + 1}" for word in path[1:-1] if word.isdecimal()]
    return " / ".join([path[0], *blocks, " ".join(words)])


def quantize(
    graph: onnx.ModelProto,
    ranges: Any,
    *,
    flavor: str = "int8",
    keep: Collection[str] = (),
    only: Collection[str] = (),
    rounded: Mapping[str, NDArray[np.int8]] | None = None,
    merge: bool = True,
) -> onnx.ModelProto:
    """Return a graph in int8, except for the nodes named in `keep`; or with the nodes named in `only` in int8 alone.

    `ranges` are those of `calibration.ranges`, `rounded` weights those of `correction.round_weights`; others go to the
    nearest level. Without `merge`, the first layer keeps its channels (see `layout`).
    """
    wanted = FLAVORS[flavor]
    if wanted.channels_last:
        graph = layout.normalize_rows(graph)
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(graph),  # a copy, with the shapes that it needs
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=wanted.activations,
        tensors_range=ranges,
        nodes_to_quantize=[*only, *_activations(graph, only)],
        nodes_to_exclude=[*keep, *([] if only else float_operators(graph, keep))],
        op_types_to_quantize=list(OPERATORS),
        extra_options={**wanted.options, "TensorQuantOverrides": weight_scales(graph, only)},
    )
    quantizer.quantize_model()
    made: onnx.ModelProto = quantizer.model.model
    for tensor in made.graph.initializer:
        name = tensor.name.removesuffix(TENSOR_NAME_QUANT_SUFFIX)
        if rounded and name != tensor.name and name in rounded:
            tensor.CopyFrom(numpy_helper.from_array(rounded[name], tensor.name))
    _shield(made.graph)
    if wanted.channels_last and merge:
        made = layout.merge_columns(made)
    ONNXModel(made).topological_sort()  # inserted nodes were appended
    return made


def float_operators(graph: onnx.ModelProto, keep: Collection[str] = ()) -> list[str]:
    """Return the names of the operators without weights that are to stay in float, as no operator in int8 reads them.

    Rounded to one scale, sums and concatenations lose the tokens and channels that are much smaller than others; and
    where a layer norm or a softmax reads them, in float, nothing is gained by it.
    """
    makers = {output: node.op_type for node in graph.graph.node for output in node.output}
    read, found = set[str](), []
    for node in reversed(graph.graph.node):
        if node.op_type in OPERATORS and node.name not in keep:
            fused = node.op_type in ACTIVATIONS and makers.get(node.input[0]) in WEIGHTED
            if node.op_type in WEIGHTED or fused or not read.isdisjoint(node.output):
                read.update(node.input)
            else:
                found.append(node.name)
    return found


def _shield(graph: onnx.GraphProto) -> None:
    """Put a LeakyRelu of slope 1 behind every layer that stays in float between quantized tensors.

    ONNX Runtime 1.32 quantizes such weights itself, with one scale for all channels (`WeightBiasQuantization`). It does
    not if another operator than Relu and Clip stands before the QuantizeLinear; this one, it computes in the layer.
    """
    constants = {tensor.name for tensor in graph.initializer}
    quantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in list(graph.node):
        if node.op_type in ("Conv", "Gemm") and node.input[0] in quantized and node.input[1] in constants:
            name = f"{node.name}/float"
            graph.node.append(helper.make_node("LeakyRelu", [name], [node.output[0]], name=name, alpha=1.0))
            node.output[0] = name


def weight_scales(graph: onnx.ModelProto, only: Collection[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Return a symmetric scale per output channel of every weight, or those of the nodes named in `only`.

    They have the form in which ONNX Runtime's quantizer takes overrides. Each is the smallest with which neither a
    weight exceeds 127 levels nor the sum of two that are multiplied side by side: rounded, such a sum is at most 128,
    and 255 * 128 < 2**15. Neighbors are taken in the order in which ONNX Runtime sums, channels innermost, wherever the
    first pair begins. Depthwise convolutions are summed in 32 bits.
    """
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    scales = {}
    for node in graph.graph.node:
        if node.op_type in WEIGHTED and node.input[1] in constants and (not only or node.name in only):
            axis, rows, pairs = summed(node, numpy_helper.to_array(constants[node.input[1]]))
            largest = np.abs(rows).max(1, initial=0)
            if pairs and rows.shape[1] > 1:
                largest = np.maximum(largest, np.abs(rows[:, 1:] + rows[:, :-1]).max(1))
            scales[node.input[1]] = [
                {"axis": axis, "scale": np.float32(each / LEVELS if each else 1), "zero_point": np.int8(0)}
                for each in largest
            ]
    return scales


def summed(node: onnx.NodeProto, weights: NDArray[Any]) -> tuple[int, NDArray[Any], bool]:
    """Return the axis of a layer's outputs, its weights `(outputs, K)` as they are summed, and whether by pairs."""
    settings = layout.attributes(node)
    if node.op_type == "Conv":
        outputs, inputs = weights.shape[:2]
        rows = np.moveaxis(weights, 1, -1).reshape(outputs, -1)
        depthwise = inputs == 1 < settings.get("group", 1) == outputs
        return 0, rows, not depthwise
    if node.op_type == "Gemm" and settings.get("transB"):
        return 0, weights, True
    return 1, np.moveaxis(weights, 1, 0).reshape(weights.shape[1], -1), True


def _activations(graph: onnx.ModelProto, names: Collection[str]) -> list[str]:
    """The activations directly behind the nodes named."""
    outputs = {output for node in graph.graph.node if node.name in names for output in node.output}
    return [node.name for node in graph.graph.node if node.op_type in ACTIVATIONS and node.input[0] in outputs]
