"""int8 as QuantizeLinear and DequantizeLinear around operators, in the flavour that the runtime wants.

Weights are int8 with a scale for each channel, without which depthwise convolutions fall apart. What else differs by
runtime is a `Flavour`. The quantiser is ONNX Runtime's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from tlkit.plugin.contract import IMAGES

WEIGHTED = ("Conv", "Gemm", "MatMul")  # the layers that can be left in float one by one
# An activation is absorbed by the layer before it, whose output then needs no range but the activation's own: without
# that, ReLU6 would leave its six units a few levels. No Mul and no Sub: they are the normalisation, which stays float.
ACTIVATIONS = ("Clip", "Relu")
OPERATORS = (*WEIGHTED, *ACTIVATIONS, "Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool")


@dataclass(frozen=True, slots=True)
class Flavour:
    """How a runtime wants its int8: the type of activations, and what ONNX Runtime's quantiser calls the rest."""

    activations: QuantType
    by_rows: bool
    options: Mapping[str, bool] = field(default_factory=dict)


FLAVOURS = {
    # ONNX Runtime's CPU: uint8 with a zero point, so that what comes after a ReLU has all 256 levels; int32 biases.
    "int8": Flavour(QuantType.QUInt8, by_rows=True),
    # TensorRT: int8 about zero, and biases stay float; it parses no other.
    "int8-symmetric": Flavour(
        QuantType.QInt8,
        by_rows=False,
        options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    ),
}


def layers(graph: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the operators with weights, in order."""
    return tuple(node.name for node in graph.graph.node if node.op_type in WEIGHTED)


def quantise(
    graph: onnx.ModelProto,
    ranges: Any,
    *,
    flavour: str = "int8",
    keep: Collection[str] = (),
    only: Collection[str] = (),
) -> onnx.ModelProto:
    """The graph in int8, but for the nodes named in `keep`; or with the nodes named in `only` in int8 and nothing else.

    `ranges` are those of `calibrate.ranges`.
    """
    wanted = FLAVOURS[flavour]
    if wanted.by_rows:
        graph = _normalised_by_rows(graph)
    quantiser = QDQQuantizer(
        onnx.shape_inference.infer_shapes(graph),  # a copy, with the shapes that it goes by
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=wanted.activations,
        tensors_range=ranges,
        nodes_to_quantize=[*only, *_activations(graph, only)],
        nodes_to_exclude=list(keep),
        op_types_to_quantize=list(OPERATORS),
        extra_options=dict(wanted.options),
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()  # it appends what it inserts
    made: onnx.ModelProto = quantiser.model.model
    return made


def _activations(graph: onnx.ModelProto, names: Collection[str]) -> list[str]:
    """The activations directly behind the nodes named."""
    outputs = {output for node in graph.graph.node if node.name in names for output in node.output}
    return [node.name for node in graph.graph.node if node.op_type in ACTIVATIONS and node.input[0] in outputs]


def _normalised_by_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with pixels normalised before the channels come first, a row at a time: the same values bit for bit.

    ONNX Runtime runs int8 convolutions with channels last and moves the transposition out of their way, so that the
    normalisation behind it went by threes: a fifth of EfficientNet-Lite0's time in int8.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    if [node.op_type for node in graph.node[:4]] != ["Cast", "Transpose", "Sub", "Mul"]:
        raise ValueError("not the normalisation of `model.trunk.Normalise`")
    cast, transpose, subtract, multiply = graph.node[:4]
    width = graph.input[0].type.tensor_type.shape.dim[2].dim_value
    constants = {constant.name: constant for constant in graph.initializer}
    for step in (subtract, multiply):
        constant = constants[step.input[1]]
        row = np.tile(numpy_helper.to_array(constant).reshape(1, 3), (width, 1))
        constant.CopyFrom(numpy_helper.from_array(row, constant.name))
    pixels, planes = f"{IMAGES}/normalised", multiply.output[0]
    subtract.input[0], multiply.output[0] = cast.output[0], pixels
    transpose.input[0], transpose.output[0] = pixels, planes
    order = [cast, subtract, multiply, transpose, *graph.node[4:]]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:], graph.value_info[:]  # the shapes between are others now, and are inferred again
    graph.node.extend(copies)
    return changed
