"""int8 as QuantizeLinear and DequantizeLinear around operators, in the flavour that the runtime wants.

Weights are int8 with a scale for each channel, without which depthwise convolutions fall apart. What else differs by
runtime is a `Flavour`. The quantiser is ONNX Runtime's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from tlkit.deploy.precision import entry

WEIGHTED = ("Conv", "Gemm", "MatMul")  # the layers that can be left in float one by one
# An activation is absorbed by the layer before it, whose output then needs no range but the activation's own: without
# that, ReLU6 would leave its six units a few levels. No Mul and no Sub: they are the normalisation, which stays float.
ACTIVATIONS = ("Clip", "Relu")
OPERATORS = (*WEIGHTED, *ACTIVATIONS, "Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool")


@dataclass(frozen=True, slots=True)
class Flavour:
    """How a runtime wants its int8: the type of activations, and what ONNX Runtime's quantiser calls the rest.

    With `channels_last` its convolutions read them so, and the graph begins accordingly: see `entry`.
    """

    activations: QuantType
    channels_last: bool
    options: Mapping[str, bool] = field(default_factory=dict)


FLAVOURS = {
    # ONNX Runtime's CPU: uint8 with a zero point, so that what comes after a ReLU has all 256 levels; int32 biases.
    "int8": Flavour(QuantType.QUInt8, channels_last=True),
    # TensorRT: int8 about zero, and biases stay float; it parses no other.
    "int8-symmetric": Flavour(
        QuantType.QInt8,
        channels_last=False,
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
    if wanted.channels_last:
        graph = entry.by_rows(graph)
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
    made: onnx.ModelProto = quantiser.model.model
    if wanted.channels_last:
        made = entry.straight(made)
    ONNXModel(made).topological_sort()  # what was inserted was appended
    return made


def _activations(graph: onnx.ModelProto, names: Collection[str]) -> list[str]:
    """The activations directly behind the nodes named."""
    outputs = {output for node in graph.graph.node if node.name in names for output in node.output}
    return [node.name for node in graph.graph.node if node.op_type in ACTIVATIONS and node.input[0] in outputs]
