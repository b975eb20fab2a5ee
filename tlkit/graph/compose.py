"""Cut, merge and rename ONNX graphs, and take their weights out and put others in.

The graph of all stages is cut at a stage and merged with the graph of a head; neither needs a second trace, so
`trunk.onnx` and `model.onnx` hold the same nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, helper, numpy_helper

from tlkit.errors import ArtifactError
from tlkit.model.cut import LEAST_NORM, blocks_of
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, PROBABILITIES

if TYPE_CHECKING:
    from torch import nn


def stage_output(stage: str) -> str:
    """Return the name of the output with the pooled features of a stage, in the graph of all stages."""
    return f"{FEATURES}.{stage}"


def extract_graph(graph: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """Return the part of a graph that computes `outputs` from `images`."""
    extracted: onnx.ModelProto = onnx.utils.Extractor(graph).extract_model([IMAGES], outputs)
    return extracted


def cut_graph(graph: onnx.ModelProto, cut: str) -> onnx.ModelProto:
    """Return the part of the graph of all stages that ends at `cut`: `images` to `features`."""
    outputs = [*map(stage_output, blocks_of(cut))]
    trunk = extract_graph(graph, outputs)
    if len(outputs) == 1:
        rename_tensors(trunk, {outputs[0]: FEATURES})
    else:
        _join(trunk.graph, outputs)
    return trunk


def _join(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Replace outputs `(N, ...)` by one with all of them, each scaled to norm 1, as `tlkit.model.cut.select` does."""
    least = numpy_helper.from_array(np.array(LEAST_NORM, np.float32), f"{FEATURES}/least_norm")
    axes = numpy_helper.from_array(np.array([1], np.int64), f"{FEATURES}/axes")
    graph.initializer.extend([least, axes])
    for output in outputs:
        norm, safe, scaled = (f"{output}/{step}" for step in ("norm", "safe_norm", "scaled"))
        graph.node.append(helper.make_node("ReduceL2", [output, axes.name], [norm], name=norm, keepdims=1))
        graph.node.append(helper.make_node("Max", [norm, least.name], [safe], name=safe))
        graph.node.append(helper.make_node("Div", [output, safe], [scaled], name=scaled))
    scaled_outputs = [f"{output}/scaled" for output in outputs]
    graph.node.append(helper.make_node("Concat", scaled_outputs, [FEATURES], name=FEATURES, axis=1))
    batch, *_ = graph.output[0].type.tensor_type.shape.dim
    widths = [output.type.tensor_type.shape.dim[1].dim_value for output in graph.output]
    shape = [batch.dim_param or None, sum(widths)]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, shape))


def merge_graphs(trunk: onnx.ModelProto, head: onnx.ModelProto, activation: str = "softmax") -> onnx.ModelProto:
    """Return the graph of a trunk and a head: `images` to `features`, `logits`, its scores and `probabilities`."""
    outputs = [FEATURES, *(output.name for output in head.graph.output)]
    # The two were traced separately and use the same names inside.
    head = compose.add_prefix(head, "head/", rename_inputs=False, rename_outputs=False)
    features = helper.make_tensor_value_info("head/" + FEATURES, onnx.TensorProto.FLOAT, None)
    rename_tensors(head, {FEATURES: features.name})
    model: onnx.ModelProto = compose.merge_models(
        trunk, head, io_map=[(FEATURES, features.name)], outputs=outputs, producer_name="tlkit"
    )
    import_once(model)
    add_probabilities(model.graph, LOGITS, PROBABILITIES, activation)
    return model


def import_once(model: onnx.ModelProto) -> None:
    """Name each set of operators once; PyTorch and ONNX's `merge_models` name some twice."""
    versions = {each.domain: each.version for each in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*each) for each in versions.items())


def add_probabilities(graph: onnx.GraphProto, logits: str, probabilities: str, activation: str) -> None:
    """Add an output to a graph: the softmax or sigmoid of its output `logits`."""
    shape = next(output for output in graph.output if output.name == logits).type.tensor_type
    node = helper.make_node(activation.capitalize(), [logits], [probabilities], name=probabilities)
    if activation == "softmax":
        node.attribute.append(helper.make_attribute("axis", -1))
    graph.node.append(node)
    graph.output.append(helper.make_tensor_value_info(probabilities, onnx.TensorProto.FLOAT, None))
    graph.output[-1].type.tensor_type.CopyFrom(shape)


def rename_tensors(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a graph wherever they appear."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def remove_weights(graph: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """Remove the values of all initializers that are tensors of a module's state; names, types and shapes stay."""
    state = module.state_dict()
    for tensor in graph.graph.initializer:
        if tensor.name in state:
            name, dtype, shape = tensor.name, tensor.data_type, tuple(tensor.dims)
            tensor.Clear()
            tensor.name, tensor.data_type = name, dtype
            tensor.dims.extend(shape)
    return graph


def put_weights(graph: onnx.ModelProto, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Give the initializers of these names their values. Raises ArtifactError for another type or shape."""
    for tensor in graph.graph.initializer:
        array = arrays.get(tensor.name)
        if array is None:  # a constant of the architecture
            continue
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        if (kind, array.shape) != (tensor.data_type, tuple(tensor.dims)):
            raise ArtifactError(f"{tensor.name} has another type or shape than in the graph of its architecture")
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
