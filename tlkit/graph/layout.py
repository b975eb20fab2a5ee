"""How an int8 graph for ONNX Runtime's CPU begins: from pixels to the first convolution without a detour.

ONNX Runtime runs int8 convolutions with channels last, as pixels are. Three detours of a traced graph cost
EfficientNet-Lite0 a quarter of its time in int8. None of them changes a value:

- Pixels were normalised with channels first, and by threes once ONNX Runtime had moved the transposition out of the
  way of its convolutions. `by_rows` normalises a row at a time.
- Where normalised pixels, quantised, are the pixels again, as (x - 127) / 128 is in steps of 1/128 about 127, there is
  nothing to compute: `straight` leaves it out.
- ONNX Runtime's fast convolution reads channels by fours, and pixels have three. Four columns of three are twelve, and
  a convolution of stride 2 makes two columns of them at once: `straight` merges them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tlkit.plugin.contract import IMAGES

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHANNELS = 3
MERGED = 4  # columns
STRIDE = 2  # of the convolution that they are merged for, as of nearly all that begin a network
MADE = MERGED // STRIDE  # columns at once


def by_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with pixels normalised before the channels come first, a row at a time: the same values bit for bit."""
    changed = _copy(model)
    graph = changed.graph
    if [node.op_type for node in graph.node[:4]] != ["Cast", "Transpose", "Sub", "Mul"]:
        raise ValueError("not the normalisation of `model.trunk.Normalise`")
    cast, transpose, subtract, multiply = graph.node[:4]
    width = graph.input[0].type.tensor_type.shape.dim[2].dim_value
    constants = {constant.name: constant for constant in graph.initializer}
    for step in (subtract, multiply):
        constant = constants[step.input[1]]
        row = np.tile(numpy_helper.to_array(constant).reshape(1, CHANNELS), (width, 1))
        constant.CopyFrom(numpy_helper.from_array(row, constant.name))
    preprocessing, planes = f"{IMAGES}/normalised", multiply.output[0]
    subtract.input[0], multiply.output[0] = cast.output[0], preprocessing
    transpose.input[0], transpose.output[0] = preprocessing, planes
    order = [cast, subtract, multiply, transpose, *graph.node[4:]]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:], graph.value_info[:]  # the shapes between are others now, and are inferred again
    graph.node.extend(copies)
    return changed


def merge_columns(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph normalised `by_rows` and then quantised, without what it need not do: the same values bit for bit.

    Its nodes are in no order.
    """
    changed = _copy(model)
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
    del graph.value_info[:]  # the shapes between are others now
    return changed


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The first nodes of a quantised graph, in order."""

    cast: onnx.NodeProto
    subtract: onnx.NodeProto
    multiply: onnx.NodeProto
    transpose: onnx.NodeProto
    quantize: onnx.NodeProto
    dequantize: onnx.NodeProto

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Beginning | None:
        """Those of a graph, or None where they are others."""
        nodes: list[onnx.NodeProto] = []
        for kind in ("Cast", "Sub", "Mul", "Transpose", "QuantizeLinear", "DequantizeLinear"):
            node = _reader(graph, nodes[-1].output[0] if nodes else IMAGES, kind)
            if node is None:
                return None
            nodes.append(node)
        return cls(*nodes)

    def quantized_input(self, graph: onnx.GraphProto) -> str:
        """Have pixels quantised with channels last; the name of the tensor that they are then."""
        if self._lossless(graph):
            for node in (self.cast, self.subtract, self.multiply, self.quantize):
                graph.node.remove(node)
            return IMAGES
        self.quantize.input[0] = self.multiply.output[0]
        return str(self.quantize.output[0])

    def _lossless(self, graph: onnx.GraphProto) -> bool:
        """Whether each of the 256 values of a pixel, normalised and quantised, is that value again."""
        mean, factor, scale, zero = (
            _tensor(graph, name) for name in (self.subtract.input[1], self.multiply.input[1], *self.quantize.input[1:])
        )
        values = np.arange(256, dtype=np.float32)[:, None]
        levels = np.rint((values - mean[0]) * factor[0] / scale) + zero.astype(np.float32)
        return zero.dtype == np.uint8 and bool((levels == values).all())


@dataclass(frozen=True, slots=True)
class _Stem:
    """The convolution that reads the pixels, of stride 2, and the nodes that quantise its output."""

    convolution: onnx.NodeProto
    quantize: onnx.NodeProto
    dequantize: onnx.NodeProto
    columns: _Columns
    rows: int  # of the images
    rows_made: int
    width: int

    @classmethod
    def of(cls, graph: onnx.GraphProto, preprocessing: onnx.NodeProto) -> _Stem | None:
        """That of a graph whose pixels come from this node, or None where their columns can't be merged for it."""
        convolution = _reader(graph, preprocessing.output[0], "Conv")
        quantize = convolution and _reader(graph, convolution.output[0], "QuantizeLinear")
        dequantize = quantize and _reader(graph, quantize.output[0], "DequantizeLinear")
        if convolution is None or quantize is None or dequantize is None:
            return None
        how = {attribute.name: helper.get_attribute_value(attribute) for attribute in convolution.attribute}
        _, rows, width, channels = (size.dim_value for size in graph.input[0].type.tensor_type.shape.dim)
        (tall, wide), (top, left, bottom, right), (down, across) = how["kernel_shape"], how["pads"], how["strides"]
        fits = (
            how["group"] == 1
            and how["dilations"] == [1, 1]
            and across == STRIDE
            and channels == CHANNELS
            and width % MERGED == 0
            and (width + left + right - wide) // STRIDE + 1 == width // STRIDE
            and len(_weights(graph, convolution)) == len(convolution.input) - 1
        )
        if not fits:
            return None
        made = (rows + top + bottom - tall) // down + 1
        return cls(convolution, quantize, dequantize, _Columns.of(wide, left), rows, made, width)

    def merge(self, graph: onnx.GraphProto, preprocessing: str) -> str:
        """Have it read several columns of `pixels` at a time; the name of the tensor that these are."""
        weights, *biases = _weights(graph, self.convolution)
        stored = _tensor(graph, weights.input[0])
        outputs = stored.shape[0]
        self._replace(graph, weights, 0, self.columns.weights(stored))
        for node in (weights, *biases):
            for index, name in enumerate(node.input):
                tensor = _tensor(graph, name)
                if tensor.shape == (outputs,):  # of each channel made: scale, zero point, bias
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
        return self._reshape(graph, preprocessing, f"{IMAGES}/columns", merged)

    def _part(self, graph: onnx.GraphProto, outputs: int) -> None:
        """Put the columns that it makes at once side by side."""
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
        """Give a node another constant; that which it had may have other readers."""
        name = f"{node.input[index]}/columns"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        node.input[index] = name


@dataclass(frozen=True, slots=True)
class _Columns:
    """How a convolution of stride 2 over columns is one of stride 1 over four columns at a time."""

    kernel: int  # how wide it is then
    left: int  # how much padded
    right: int
    places: tuple[tuple[int, int, int, int], ...]  # which column made, column of the kernel, four columns, one of these

    @classmethod
    def of(cls, kernel: int, left: int) -> _Columns:
        """Of one with a kernel so wide, so much padded on the left."""
        places = [
            (made, column, *divmod(made * STRIDE + column - left, MERGED))
            for made in range(MADE)
            for column in range(kernel)
        ]
        first, last = (edge(four for _, _, four, _ in places) for edge in (min, max))
        moved = tuple((made, column, four - first, one) for made, column, four, one in places)
        return cls(last - first + 1, -first, last, moved)

    def weights(self, weights: NDArray[Any]) -> NDArray[Any]:
        """The weights: those of each column made, which are zero where it does not look."""
        outputs, channels, rows, _ = weights.shape
        wide = np.zeros((MADE, outputs, MERGED, channels, rows, self.kernel), weights.dtype)
        for made, column, four, one in self.places:
            wide[made, :, one, :, :, four] = weights[..., column]
        return wide.reshape(MADE * outputs, MERGED * channels, rows, self.kernel)


def _weights(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What gives a convolution its weights and its biases, where they are quantised and its own."""
    makers = {maker.output[0]: maker for maker in graph.node if maker.op_type == "DequantizeLinear"}
    constants = {tensor.name for tensor in graph.initializer}
    return [
        makers[name]
        for name in node.input[1:]
        if name in makers and len(_readers(graph, name)) == 1 and constants.issuperset(makers[name].input)
    ]


def _readers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if name in node.input]


def _reader(graph: onnx.GraphProto, name: str, kind: str) -> onnx.NodeProto | None:
    """The one node that reads a tensor, if it is of a kind."""
    readers = _readers(graph, name)
    shown = any(output.name == name for output in graph.output)
    return readers[0] if len(readers) == 1 and readers[0].op_type == kind and not shown else None


def _tensor(graph: onnx.GraphProto, name: str) -> NDArray[Any]:
    """A constant of a graph."""
    found: NDArray[Any] = numpy_helper.to_array(next(tensor for tensor in graph.initializer if tensor.name == name))
    return found


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    return copied


def _prune(graph: onnx.GraphProto) -> None:
    """Drop constants that nothing reads."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
