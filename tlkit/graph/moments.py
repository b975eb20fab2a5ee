"""Add outputs to the graph of all stages: mean and mean square of the output of every batch norm, per image.

The exporter folds most batch norms into the convolution before them, so a norm is found by its numbers: the bias of
the folded convolution follows from the norm, and the output of that convolution is the output of the norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tlkit.graph.cache import cached_graph
from tlkit.plugin.contract import BATCH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tlkit.model.batchnorm import BatchNormStatistics

MEAN, SQUARE = "moments.mean.", "moments.square."
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4  # between the exporter's single precision and our double


def moments_graph(stages: Path, norms: Sequence[BatchNormStatistics]) -> Path:
    """Return the file of the graph of all stages with more outputs, `moments.mean.I` and `moments.square.I`.

    Both are float32 `(N, channels)`, for each `norms[I]` that could be found in the graph.
    """

    def make() -> onnx.ModelProto:
        graph = onnx.load_model(stages)
        for index, tensor in _found(graph, norms):
            _add(graph.graph, index, tensor, len(norms[index].bias))
        return graph

    return cached_graph(f"{stages.stem}-moments", make)


def watched(outputs: Sequence[str]) -> list[int]:
    """Return the indices of the norms that the outputs of such a graph belong to."""
    return [int(name.removeprefix(MEAN)) for name in outputs if name.startswith(MEAN)]


def _found(model: onnx.ModelProto, norms: Sequence[BatchNormStatistics]) -> Iterator[tuple[int, str]]:
    """Yield the index of each norm that is found, and the name of the tensor with its output."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def constant(node: onnx.NodeProto, place: int) -> NDArray[np.float64] | None:
        name = node.input[place] if place < len(node.input) else ""
        return numpy_helper.to_array(constants[name]).astype(np.float64) if name in constants else None

    def shift(node: onnx.NodeProto) -> NDArray[np.float64] | None:
        """Return the shift per channel of a node that a norm may have become; None for another node."""
        if node.op_type == "Conv":
            return constant(node, 2)
        if node.op_type != "BatchNormalization":
            return None
        scale, bias, mean, variance = (constant(node, place) for place in (1, 2, 3, 4))
        if scale is None or bias is None or mean is None or variance is None:
            return None
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        result: NDArray[np.float64] = bias - mean * scale / np.sqrt(variance + epsilon)
        return result

    candidates = [(node.output[0], shifted) for node in model.graph.node if (shifted := shift(node)) is not None]
    for index, norm in enumerate(norms):
        for place, (tensor, known) in enumerate(candidates):
            if any(
                known.shape == each.shape and np.allclose(known, each, _RELATIVE, _ABSOLUTE) for each in norm.folded
            ):
                del candidates[place]
                yield index, tensor
                break


def _add(graph: onnx.GraphProto, index: int, tensor: str, channels: int) -> None:
    """Add the mean and the mean square over height and width of a tensor `(N, C, H, W)` as two outputs.

    The operators are those that ONNX Runtime runs in its blocked CPU layout; others would make it convert all maps.
    """
    squared = f"moments.squared.{index}"
    graph.node.append(helper.make_node("Mul", [tensor, tensor], [squared]))
    for prefix, maps in ((MEAN, tensor), (SQUARE, squared)):
        output = f"{prefix}{index}"
        graph.node.append(helper.make_node("GlobalAveragePool", [maps], [f"{output}.map"]))
        graph.node.append(helper.make_node("Flatten", [f"{output}.map"], [output]))
        graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [BATCH, channels]))
