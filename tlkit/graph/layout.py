"""Rearrange the first nodes of an int8 graph for ONNX Runtime's CPU, from the images to the first convolution.

ONNX Runtime runs int8 convolutions with channels last, the layout of the images. Three inefficiencies of a traced graph
cost EfficientNet-Lite0 a quarter of its time in int8. Removing them changes no value:

- Images are normalized with channels first, and channel by channel in threes once ONNX Runtime has moved the
  transposition. `normalize_rows` normalizes a row at a time.
- If normalized and quantized pixels equal the pixels, as (x - 127) / 128 does in steps of 1/128 about 127, there is
  nothing to compute: `merge_columns` removes these nodes.
- ONNX Runtime's fast convolution reads channels in fours, and images have three. Four columns of three are twelve, and
  a convolution of stride 2 computes two output columns from them: `merge_columns` merges them.

Nodes are found from the images on, by what reads them; a graph that begins with others is left as it is. Where a
network asks for the batch size, a Shape reads the images as well.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tlkit.plugin.contract import IMAGES

CHANNELS = 3
MERGED = 4  # columns
STRIDE = 2  # of the first convolution of nearly all networks
MADE = MERGED // STRIDE  # output columns of one step


def normalize_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with images normalized before the transposition, a row at a time; bit-identical.

    A graph that does not begin as `model.trunk.Normalize` does is returned as it is.
    """
    changed = copy.deepcopy(model)
    graph = changed.graph
    nodes = _chain(graph, ("Cast", "Transpose", "Sub", "Mul"))
    if nodes is None:
        return changed
    cast, transpose, subtract, multiply = nodes
    width = graph.input[0].type.tensor_type.shape.dim[2].dim_value
    constants = {constant.name: constant for constant in graph.initializer}
    steps = [constants.get(step.input[1]) for step in (subtract, multiply)]
    if any(constant is None or list(constant.dims) != [CHANNELS, 1, 1] for constant in steps):
        return changed
    for constant in filter(None, steps):
        row = np.tile(numpy_helper.to_array(constant).reshape(1, CHANNELS), (width, 1))
        constant.CopyFrom(numpy_helper.from_array(row, constant.name))
    normalized, planes = f"{IMAGES}/normalized", multiply.output[0]
    subtract.input[0], multiply.output[0] = cast.output[0], normalized
    transpose.input[0], transpose.output[0] = normalized, planes
    order = [cast, subtract, multiply, transpose, *(node for node in graph.node if node not in nodes)]
    copies = copy.deepcopy(order)
    del graph.node[:], graph.value_info[:]  # intermediate shapes changed, and are inferred again
    graph.node.extend(copies)
    return changed


def merge_columns(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of `normalize_rows` that was quantized, with columns merged; bit-identical.

    Its nodes are not sorted.
    """
    changed = copy.deepcopy(model)
    graph = changed.graph
    beginning = _Beginning.of(graph)
    if beginning is None:  # its first layer was left in float
        return changed
    read = beginning.quantized_input(graph)
    stem = _Stem.of(graph, beginning.dequantize)
    if stem is not None:
        read = stem.merge(graph, read)
    beginning.transpose.input[0] = read
    beginning.dequantize.input[0] = beginning.transpose.output[0]
    _prune(graph)
    del graph.value_info[:]  # intermediate shapes changed
    return changed


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The first nodes of a quantized graph, in order."""

    cast: onnx.NodeProto
    subtract: onnx.NodeProto
    multiply: onnx.NodeProto
    transpose: onnx.NodeProto
    quantize: onnx.NodeProto
    dequantize: onnx.NodeProto

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Beginning | None:
        """Return those of a graph; None if it begins with other nodes."""
        nodes = _chain(graph, ("Cast", "Sub", "Mul", "Transpose", "QuantizeLinear", "DequantizeLinear"))
        return None if nodes is None else cls(*nodes)

    def quantized_input(self, graph: onnx.GraphProto) -> str:
        """Quantize images with channels last; return the name of the quantized tensor."""
        if self._lossless(graph):
            for node in (self.cast, self.subtract, self.multiply, self.quantize):
                graph.node.remove(node)
            return IMAGES
        self.quantize.input[0] = self.multiply.output[0]
        return str(self.quantize.output[0])

    def _lossless(self, graph: onnx.GraphProto) -> bool:
        """Return whether each of the 256 values of a pixel, normalized and quantized, is unchanged."""
        mean, factor, scale, zero = (
            _tensor(graph, name) for name in (self.subtract.input[1], self.multiply.input[1], *self.quantize.input[1:])
        )
        values = np.arange(256, dtype=np.float32)[:, None]
        levels = np.rint((values - mean[0]) * factor[0] / scale) + zero.astype(np.float32)
        return zero.dtype == np.uint8 and bool((levels == values).all())


@dataclass(frozen=True, slots=True)
class _Stem:
    """The first convolution, of stride 2, and the nodes that quantize its output."""

    convolution: onnx.NodeProto
    quantize: onnx.NodeProto
    dequantize: onnx.NodeProto
    columns: _Columns
    rows: int  # of the images
    rows_made: int
    width: int

    @classmethod
    def of(cls, graph: onnx.GraphProto, images: onnx.NodeProto) -> _Stem | None:
        """Return that of a graph whose images come from this node; None if their columns can't be merged for it."""
        convolution = _reader(graph, images.output[0], "Conv")
        quantize = convolution and _reader(graph, convolution.output[0], "QuantizeLinear")
        dequantize = quantize and _reader(graph, quantize.output[0], "DequantizeLinear")
        if convolution is None or quantize is None or dequantize is None:
            return None
        settings = attributes(convolution)
        weights = _weights(graph, convolution)
        known = settings.keys() >= {"pads", "strides", "group", "dilations"}
        if not known or len(weights) < len(convolution.input) - 1:
            return None
        _, rows, width, channels = (size.dim_value for size in graph.input[0].type.tensor_type.shape.dim)
        (top, left, bottom, right), (down, across) = (settings[name] for name in ("pads", "strides"))
        tall, wide = _tensor(graph, weights[0].input[0]).shape[2:]
        fits = (
            settings["group"] == 1
            and settings["dilations"] == [1, 1]
            and across == STRIDE
            and channels == CHANNELS
            and width % MERGED == 0
            and (width + left + right - wide) // STRIDE + 1 == width // STRIDE
        )
        if not fits:
            return None
        made = (rows + top + bottom - tall) // down + 1
        return cls(convolution, quantize, dequantize, _Columns.of(wide, left), rows, made, width)

    def merge(self, graph: onnx.GraphProto, images: str) -> str:
        """Let the convolution read several columns of `images` at a time; return the name of the merged tensor."""
        weights, *biases = _weights(graph, self.convolution)
        stored = _tensor(graph, weights.input[0])
        outputs = stored.shape[0]
        self._replace(graph, weights, 0, self.columns.weights(stored))
        for node in (weights, *biases):
            for index, name in enumerate(node.input):
                tensor = _tensor(graph, name)
                if tensor.shape == (outputs,):  # per output channel: scale, zero point, bias
                    self._replace(graph, node, index, np.tile(tensor, MADE))
        for attribute in self.convolution.attribute:
            match attribute.name:
                case "kernel_shape":
                    attribute.ints[1] = self.columns.kernel
                case "strides":
                    attribute.ints[1] = 1
                case "pads":
                    attribute.ints[1], attribute.ints[3] = self.columns.left, self.columns.right
        self._part(graph, outputs)
        merged = [0, self.rows, self.width // MERGED, MERGED * CHANNELS]
        return self._reshape(graph, images, f"{IMAGES}/columns", merged)

    def _part(self, graph: onnx.GraphProto, outputs: int) -> None:
        """Place the output columns of one step side by side."""
        made = str(self.quantize.output[0])
        last, apart, first = (f"{made}/{name}" for name in ("last", "apart", "first"))
        graph.node.append(helper.make_node("Transpose", [made], [last], name=last, perm=[0, 2, 3, 1]))
        self._reshape(graph, last, apart, [0, self.rows_made, self.width // STRIDE, outputs])
        graph.node.append(helper.make_node("Transpose", [apart], [first], name=first, perm=[0, 3, 1, 2]))
        self.dequantize.input[0] = first

    def _reshape(self, graph: onnx.GraphProto, given: str, made: str, shape: list[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{made}/shape"))
        graph.node.append(helper.make_node("Reshape", [given, f"{made}/shape"], [made], name=made))
        return made

    def _replace(self, graph: onnx.GraphProto, node: onnx.NodeProto, index: int, array: NDArray[Any]) -> None:
        """Give a node another constant; the previous one may have other readers."""
        name = f"{node.input[index]}/columns"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        node.input[index] = name


@dataclass(frozen=True, slots=True)
class _Columns:
    """A convolution of stride 2 over columns as one of stride 1 over groups of four columns."""

    kernel: int  # width over groups
    left: int  # padding
    right: int
    places: tuple[tuple[int, int, int, int], ...]  # output column, kernel column, group, column in the group

    @classmethod
    def of(cls, kernel: int, left: int) -> _Columns:
        """Return that of a convolution with this kernel width and left padding."""
        places = [
            (made, column, *divmod(made * STRIDE + column - left, MERGED))
            for made in range(MADE)
            for column in range(kernel)
        ]
        first, last = (edge(four for _, _, four, _ in places) for edge in (min, max))
        moved = tuple((made, column, four - first, one) for made, column, four, one in places)
        return cls(last - first + 1, -first, last, moved)

    def weights(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Return the weights for all output columns; they are zero outside the kernel."""
        outputs, channels, rows, _ = weights.shape
        wide = np.zeros((MADE, outputs, MERGED, channels, rows, self.kernel), weights.dtype)
        for made, column, four, one in self.places:
            wide[made, :, one, :, :, four] = weights[..., column]
        return wide.reshape(MADE * outputs, MERGED * channels, rows, self.kernel)


def _weights(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the nodes that dequantize a convolution's weights and biases, if they are constants and not shared."""
    makers = {maker.output[0]: maker for maker in graph.node if maker.op_type == "DequantizeLinear"}
    constants = {tensor.name for tensor in graph.initializer}
    return [
        makers[name]
        for name in node.input[1:]
        if name in makers and len(readers(graph, name)) == 1 and constants.issuperset(makers[name].input)
    ]


def _chain(graph: onnx.GraphProto, kinds: Sequence[str]) -> list[onnx.NodeProto] | None:
    """Return the nodes of these operators that read the images, one after the other; None if there are others."""
    nodes: list[onnx.NodeProto] = []
    for kind in kinds:
        node = _reader(graph, nodes[-1].output[0] if nodes else IMAGES, kind)
        if node is None:
            return None
        nodes.append(node)
    return nodes


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node, by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def readers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    """Return the nodes that read a tensor; of the images, those that read more than their shape."""
    return [node for node in graph.node if name in node.input and not (name == IMAGES and node.op_type == "Shape")]


def _reader(graph: onnx.GraphProto, name: str, kind: str) -> onnx.NodeProto | None:
    """Return the only node that reads a tensor, if its operator is `kind`."""
    found = readers(graph, name)
    shown = any(output.name == name for output in graph.output)
    return found[0] if len(found) == 1 and found[0].op_type == kind and not shown else None


def _tensor(graph: onnx.GraphProto, name: str) -> NDArray[Any]:
    """Return a constant of a graph."""
    found: NDArray[Any] = numpy_helper.to_array(next(tensor for tensor in graph.initializer if tensor.name == name))
    return found


def _prune(graph: onnx.GraphProto) -> None:
    """Remove constants that nothing reads."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
