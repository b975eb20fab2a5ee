"""Round the weights of a trunk and correct its biases for its int8 form.

Rounded to the nearest level, each weight adds an error of its own. `round_weights` goes input by input, and the weights
not rounded yet make up for the errors so far, as far as their inputs vary together over calibration images (Frantar,
Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization", ICLR 2023, section 3). Behind corrected
biases, that takes 7 to 70 % of the noise from the features of EfficientNet-Lite, by set and cut.

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

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tlkit.graph.biases import MEAN, Bias, nodes_to, own_biases, part_graph
from tlkit.graph.layout import attributes
from tlkit.graph.quantize import LEVELS, WEIGHTED, quantize, summed, weight_scales
from tlkit.plugin.contract import IMAGES
from tlkit.runtime.session import quiet_options
from tlkit.util.resources import cores

BATCH_SIZE = 8
OBSERVED = 4  # images at a time where all tensors are in memory
PLACES = 256  # of a tensor whose values are taken from them
DAMPING = 0.01  # of the products of inputs, relative to their mean square
WIDEST = 2048  # inputs of a layer whose weights are rounded so; the time grows with their square
Held = dict[str, list[NDArray[Any]]]  # tensors by name, an array for each batch of images


def round_weights(
    graph: onnx.ModelProto, images: NDArray[np.uint8], tick: Callable[[int], object]
) -> dict[str, NDArray[np.int8]]:
    """Return the weights of a trunk's fp32 graph in levels, by name; those left out go to the nearest level.

    `tick(n)` is called after each n images.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if _supported(node, constants)]
    products = dict[str, NDArray[np.float32]]()
    observed = onnx.ModelProto()
    observed.CopyFrom(graph)
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    shown = {output.name for output in graph.graph.output}
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in shown)
    session = _session(observed)
    random = np.random.default_rng(0)
    for start in range(0, len(images), OBSERVED):
        batch = images[start : start + OBSERVED]
        got = dict(zip(names, session.run(names, {IMAGES: batch}), strict=False))
        for node in nodes:
            inputs = _inputs(node, got[node.input[0]], constants[node.input[1]].shape, random)
            with np.errstate(over="ignore", invalid="ignore"):
                products[node.input[1]] = products.get(node.input[1], 0) + inputs.swapaxes(1, 2) @ inputs
        tick(len(batch))
    scales = weight_scales(graph)
    found = {}
    for node in nodes:
        weights, together = constants[node.input[1]], products[node.input[1]]
        if not np.isfinite(together).all():
            continue
        _, places, _ = summed(node, np.arange(weights.size).reshape(weights.shape))
        _, rows, pairs = summed(node, weights)
        rows = rows.reshape(len(together), -1, rows.shape[1])
        steps = np.array([each["scale"] for each in scales[node.input[1]]], np.float32).reshape(rows.shape[:2])
        levels = np.empty(weights.size, np.int8)
        levels[places.ravel()] = _levels(rows / steps[..., None], together, pairs).ravel()
        found[node.input[1]] = levels.reshape(weights.shape)
    return found


def correct_biases(
    graph: onnx.ModelProto,
    found: Any,
    images: NDArray[np.uint8],
    tick: Callable[[int], object],
    *,
    flavor: str = "int8",
    keep: Collection[str] = (),
    rounded: Mapping[str, NDArray[np.int8]] | None = None,
) -> onnx.ModelProto:
    """Return the fp32 graph of a trunk with the biases that its int8 form is to have.

    `found` are the `calibration.ranges`, `keep` the layers that stay in float, `rounded` the weights of
    `round_weights`; `tick(1)` is called after each layer.
    """
    graph, biases = own_biases(graph)
    held: Held = {IMAGES: [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]}
    expected, _ = _means(graph, [bias.node for bias in biases], held)
    int8 = quantize(graph, found, flavor=flavor, keep=keep, rounded=rounded, merge=False)
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
    session = _session(part)
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


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = quiet_options(cores())
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _levels(rows: NDArray[Any], products: NDArray[np.float32], pairs: bool) -> NDArray[np.float32]:
    """Round weights `(groups, outputs, inputs)`, in steps, by the products of the inputs `(groups, inputs, inputs)`.

    With `pairs`, the sum of two neighbors stays within what `quantize.weight_scales` allows.
    """
    together = products.astype(np.float64)
    inputs = together.shape[-1]
    damping = DAMPING * np.trace(together, axis1=1, axis2=2) / inputs
    together += np.eye(inputs) * np.where(damping > 0, damping, 1)[:, None, None]
    factors = np.linalg.cholesky(np.linalg.inv(together)).astype(np.float32)
    most, left = LEVELS, np.ascontiguousarray(rows.transpose(2, 0, 1))
    levels = np.zeros_like(left)
    for place in range(inputs):
        level = np.rint(left[place])
        if pairs and place:
            level = np.clip(level, -most - 1 - levels[place - 1], most + 1 - levels[place - 1])
        levels[place] = np.clip(level, -most, most)
        error = (left[place] - levels[place]) / factors[:, place, place, None]
        left[place + 1 :] -= factors[:, place + 1 :, place].T[..., None] * error
    return levels.transpose(1, 2, 0)


def _supported(node: onnx.NodeProto, constants: dict[str, NDArray[np.float32]]) -> bool:
    if node.op_type not in WEIGHTED or node.input[1] not in constants:
        return False
    weights, settings = constants[node.input[1]], attributes(node)
    if node.op_type != "Conv":
        return weights.ndim == 2 and max(weights.shape) <= WIDEST and not settings.get("transA")
    plain = weights.ndim == 4 and settings.get("auto_pad", b"NOTSET") == b"NOTSET"
    return plain and weights[0].size <= WIDEST


def _inputs(
    node: onnx.NodeProto, given: NDArray[np.float32], shape: tuple[int, ...], random: np.random.Generator
) -> NDArray[np.float32]:
    """Return what a layer multiplies by its weights at some places, `(groups, places, inputs)`, as `summed` orders."""
    if node.op_type != "Conv":
        vectors = given.reshape(1, -1, given.shape[-1])
        return vectors[:, random.permutation(vectors.shape[1])[:PLACES]]
    settings = attributes(node)
    top, left, bottom, right = settings.get("pads", [0] * 4)
    (down, across), (tall, wide) = settings.get("strides", [1, 1]), settings.get("dilations", [1, 1])
    padded = np.pad(given, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = (shape[2] - 1) * tall + 1, (shape[3] - 1) * wide + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))[:, :, ::down, ::across, ::tall, ::wide]
    count, _, height, width = windows.shape[:4]
    places = random.permutation(count * height * width)[:PLACES]
    image, row, column = np.unravel_index(places, (count, height, width))
    groups = settings.get("group", 1)
    taken = windows[image, :, row, column].reshape(len(places), groups, shape[1], -1)
    return taken.transpose(1, 0, 3, 2).reshape(groups, len(places), -1)
