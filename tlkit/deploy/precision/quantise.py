"""int8 as QuantizeLinear and DequantizeLinear around operators, in the flavour that ONNX Runtime's CPU runs fastest.

Activations are uint8 with a zero point, so that what comes after a ReLU has all 256 levels; weights are int8 with a
scale for each channel, without which depthwise convolutions fall apart. Biases are int32. The quantiser is ONNX
Runtime's own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

WEIGHTED = ("Conv", "Gemm", "MatMul")  # the layers that can be left in float one by one
# An activation is absorbed by the layer before it, whose output then needs no range but the activation's own: without
# that, ReLU6 would leave its six units a few levels. No Mul and no Sub: they are the normalisation, which stays float.
ACTIVATIONS = ("Clip", "Relu")
OPERATORS = (*WEIGHTED, *ACTIVATIONS, "Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool")


def layers(graph: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the operators with weights, in order."""
    return tuple(node.name for node in graph.graph.node if node.op_type in WEIGHTED)


def quantise(
    graph: onnx.ModelProto, ranges: Any, *, keep: Collection[str] = (), only: Collection[str] = ()
) -> onnx.ModelProto:
    """The graph in int8, but for the nodes named in `keep`; or with the nodes named in `only` in int8 and nothing else.

    `ranges` are those of `calibrate.ranges`.
    """
    quantiser = QDQQuantizer(
        onnx.shape_inference.infer_shapes(graph),  # a copy, with the shapes that it goes by
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[*only, *_activations(graph, only)],
        nodes_to_exclude=list(keep),
        op_types_to_quantize=list(OPERATORS),
        extra_options={},
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()  # it appends what it inserts
    made: onnx.ModelProto = quantiser.model.model
    return made


def _activations(graph: onnx.ModelProto, names: Collection[str]) -> list[str]:
    """The activations directly behind the nodes named."""
    outputs = {output for node in graph.graph.node if node.name in names for output in node.output}
    return [node.name for node in graph.graph.node if node.op_type in ACTIVATIONS and node.input[0] in outputs]
