"""Correct the biases of a trunk for its int8 form, one layer after the other.

Rounding shifts the mean of what a layer gives, and the layers behind add that up: of the error of the features of
EfficientNet-Lite0, up to 97 % was one constant vector. Each bias is corrected by the mean error of its layer's channels
over calibration images, where the layers before are int8 and corrected already (Nagel, van Baalen, Blankevoort and
Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, with measured
means). Their equalization of weights (4.1) gained nothing on top of it, and made the features of photographs worse:
scales by channel do the same for the weights.

Where a mean is not that of what follows, as in a window that is mostly padding, a correction can take features away
from those of fp32; `calibration.nearest` leaves it out then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tlkit.graph.biases import MEAN, Bias, nodes_to, own_biases, part_graph
from tlkit.graph.quantize import quantize
from tlkit.plugin.contract import IMAGES
from tlkit.runtime.session import quiet_options
from tlkit.util.resources import cores

BATCH_SIZE = 8
Held = dict[str, list[NDArray[Any]]]  # tensors by name, an array for each batch of images


def correct_biases(
    graph: onnx.ModelProto,
    found: Any,
    images: NDArray[np.uint8],
    tick: Callable[[int], object],
    *,
    flavor: str = "int8",
    keep: Collection[str] = (),
) -> onnx.ModelProto:
    """Return the fp32 graph of a trunk with the biases that its int8 form is to have.

    `found` are the `calibration.ranges`, `keep` the layers that stay in float; `tick(1)` is called after each layer.
    """
    graph, biases = own_biases(graph)
    held: Held = {IMAGES: [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]}
    expected, _ = _means(graph, [bias.node for bias in biases], held)
    int8 = quantize(graph, found, flavor=flavor, keep=keep, merge=False)
    nodes = {node.name: node for node in int8.graph.node}
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for number, bias in enumerate(biases):
        stored = constants[bias.constant]
        corrected = int8.graph.initializer.add()
        corrected.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored), f"{bias.constant}/corrected"))
        nodes[bias.node].input[bias.place] = corrected.name
        got, quantized = _means(int8, [bias.node], held)
        value = numpy_helper.to_array(stored) - (got[bias.node] - expected[bias.node]).astype(np.float32)
        for tensor in (stored, corrected):
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        held = _still_read(int8.graph, biases[number:], held | quantized)
        tick(1)
    return graph


def _means(model: onnx.ModelProto, layers: Sequence[str], held: Held) -> tuple[dict[str, NDArray[np.float64]], Held]:
    """Return the mean `(channels,)` of the outputs of layers by name, and the tensors quantized on the way to them."""
    part = part_graph(model, layers, held)
    for given in part.graph.input:
        array = held[given.name][0]
        shape = [None, *array.shape[1:]] if given.name == IMAGES else [None] * array.ndim
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        given.CopyFrom(helper.make_tensor_value_info(given.name, dtype, shape))
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(part.SerializeToString(), quiet_options(cores()), providers=providers)
    names, ends = [given.name for given in part.graph.input], len(part.graph.output)
    ends -= sum(node.op_type == "QuantizeLinear" for node in part.graph.node)
    quantized: Held = {output.name: [] for output in list(part.graph.output)[ends:]}
    sums: list[Any] = [0.0] * ends
    count = 0
    for number, batch in enumerate(held[names[0]]):
        got = session.run(None, {name: held[name][number] for name in names})
        for place, array in enumerate(got[:ends]):
            axis = 1 if part.graph.output[place].name.endswith(MEAN) else array.ndim - 1
            others = tuple(each for each in range(array.ndim) if each != axis)
            sums[place] += len(batch) * array.mean(others, dtype=np.float64)
        for parts, array in zip(quantized.values(), got[ends:], strict=True):
            parts.append(array)
        count += len(batch)
    ordered = [node.name for node in model.graph.node if node.name in set(layers)]
    return {name: total / count for name, total in zip(ordered, sums, strict=True)}, quantized


def _still_read(graph: onnx.GraphProto, biases: Sequence[Bias], held: Held) -> Held:
    """Return those of the tensors held that lead to the layers with these biases."""
    ends = [node.output[0] for node in graph.node if node.name in {bias.node for bias in biases}]
    read = {name for node in nodes_to(graph, ends, held) for name in node.input}
    return {name: parts for name, parts in held.items() if name in read}
