"""A report for ONNX Runtime: layers left in float are quantized by `WeightBiasQuantization`, with one scale per tensor.

A QDQ model may leave some layers in float because they are sensitive. From the graph optimization level "basic" on,
which is part of the default, ONNX Runtime quantizes the float weights of a Conv, ConvTranspose or Gemm between a
DequantizeLinear and a QuantizeLinear, through Relu and Clip or not: to int8, with a single scale for all output
channels. Channels of a depthwise convolution often differ by orders of magnitude, so that the quiet ones are lost.
There is no option but `disabled_optimizers=["WeightBiasQuantization"]`, of which whoever is given the model does not
know.

    python ort_weight_bias.py        # numpy, onnx, onnxruntime

prints the error of the quietest eight channels relative to their mean, as the model says (all optimizations off), by
default, and without this optimizer. Expected: the same up to rounding.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE, QUIET = 32, 16, 8
OPTIMIZER = "WeightBiasQuantization"


def model() -> onnx.ModelProto:
    """Return a depthwise convolution with float weights between quantized tensors; channel i is louder than i - 1."""
    loudness = np.logspace(-3, 0, CHANNELS)[:, None, None, None]
    weights = (np.random.default_rng(0).standard_normal((CHANNELS, 1, 3, 3)) * loudness).astype(np.float32)
    values = {
        "weights": weights,
        "in_scale": np.float32(1 / 32),
        "out_scale": np.float32(1 / 1024),
        "zero": np.int16(0),
        "middle": np.uint8(128),
    }
    shape = [1, CHANNELS, SIZE, SIZE]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "in_scale", "middle"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "in_scale", "middle"], ["x_dq"]),
        helper.make_node("Conv", ["x_dq", "weights"], ["y"], name="left_in_float", group=CHANNELS, pads=[1] * 4),
        helper.make_node("QuantizeLinear", ["y", "out_scale", "zero"], ["y_q"]),  # 16 bits: what is seen is the weights
        helper.make_node("DequantizeLinear", ["y_q", "out_scale", "zero"], ["y_dq"]),
    ]
    graph = helper.make_graph(
        nodes,
        "left_in_float",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y_dq", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(graph: onnx.ModelProto, *, optimized: bool = True, disabled: tuple[str, ...] = ()) -> np.ndarray:
    """Return the output for fixed noise, in the default session or with optimizers off."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )
    noise = np.random.default_rng(1).standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32)
    return np.asarray(session.run(None, {"x": noise})[0])


def quiet_error(**options: object) -> float:
    """Return the mean error of the quietest channels, relative to the mean of what the model says."""
    expected, got = run(model(), optimized=False), run(model(), **options)  # type: ignore[arg-type]
    quiet = np.s_[:, :QUIET]
    return float(np.abs(got - expected)[quiet].mean() / np.abs(expected)[quiet].mean())


if __name__ == "__main__":
    sys.stdout.write(f"onnxruntime {onnxruntime.__version__}\n")
    sys.stdout.write(f"by default: {quiet_error():.1%}\n")
    sys.stdout.write(f"without {OPTIMIZER}: {quiet_error(disabled=(OPTIMIZER,)):.1%}\n")
