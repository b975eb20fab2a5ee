"""The graph that makes images of the rows of `tlkit.data.resampling` on any device, bit for bit as Pillow does.

A pass along an axis is the product of a matrix of weights and the pixels. Weights of 23 bits are split into pieces of
12 and 11, the latter divided by 2^11: all sums then have at most 24 bits, which float32 holds, in whatever order a
device adds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from PIL import Image

from tlkit.data.preprocessing import load
from tlkit.data.resampling import Layout, pack
from tlkit.plugin.contract import Preprocessing

ROWS, WORDS, RESIZED = "rows", "words", "resized"  # the same bytes as uint8 and as int32, and what becomes of them
FROM = 2000  # images for which a device is prepared to resize, as that takes a fraction of a second
EXAMPLES = 24  # images by which it is tested

_ALONG = """
    {a}_pixels = Reshape({a}_image, flat_shape)
    {a}_sums = MatMul({a}_weights, {a}_pixels)
    {a}_high, {a}_low = Split<axis = 1>({a}_sums)
    {a}_rounded = Add({a}_low, half)
    {a}_carried = Floor({a}_rounded)
    {a}_total = Add({a}_high, {a}_carried)
    {a}_mean = Mul({a}_total, down)
    {a}_clipped = Clip({a}_mean, black, white)
    {a}_bytes = Cast<to = 2>({a}_clipped)
    {a}_resized = Reshape({a}_bytes, image_shape)
"""
_GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
resizing (uint8[N, {length}] rows, int32[N, {numbers}] words) => (uint8[N, {size}, {size}, 3] resized) {{
    square = Slice(rows, zero, bytes, one)
    image = Reshape(square, square_shape)
    columns = Transpose<perm = [0, 2, 1, 3]>(image)
    x_image = Cast<to = 1>(columns)
    numbers = Slice(words, begin, end, one)
    tables = Reshape(numbers, table_shape)
    marks, before, taps = Split<axis = 2>(tables, widths)
    distance = Sub(places, before)
    right = Max(distance, outside)
    index = Min(right, behind)
    integers = Cast<to = 1>(taps)
    scaled = Mul(integers, scales)
    weights = GatherElements<axis = 2>(scaled, index)
    x_weights, y_weights = Split<axis = 1>(weights)
    {x}
    lines = Transpose<perm = [0, 2, 1, 3]>(x_resized)
    y_image = Cast<to = 1>(lines)
    {y}
    transposed = Transpose<perm = [0, 2, 1, 3]>(y_resized)
    mark = Gather<axis = 1>(marks, first)
    turned = Cast<to = 9>(mark)
    resized = Where(turned, transposed, y_resized)
}}
"""


def graph(its: Layout) -> bytes:
    """Return the graph for rows of a layout."""
    numbers, width = its.length // 4, its.taps + 4
    axes = {axis: _ALONG.format(a=axis) for axis in "xy"}
    model = parser.parse_model(_GRAPH.format(length=its.length, numbers=numbers, size=its.size, **axes))
    float32: dict[str, Any] = {"down": 2**-11, "half": 2**10, "black": 0, "white": 255}
    float32 |= {"scales": np.tile(np.repeat([1, 2**-11], its.size), 2)[:, None]}
    int32: dict[str, Any] = {"outside": 0, "behind": its.taps + 1, "places": np.arange(its.side)}
    int64: dict[str, Any] = {"zero": [0], "one": [1], "first": [[0]], "bytes": [its.pixels], "begin": [its.pixels // 4]}
    int64 |= {"end": [numbers], "widths": [1, 1, width - 2], "table_shape": [-1, 4 * its.size, width]}
    int64 |= {"square_shape": [-1, its.side, its.side, 3], "flat_shape": [0, its.side, -1]}
    int64 |= {"image_shape": [0, its.size, -1, 3]}
    for dtype, values in {"float32": float32, "int32": int32, "int64": int64}.items():
        tensors = (numpy_helper.from_array(np.array(value, dtype), name) for name, value in values.items())
        model.graph.initializer.extend(tensors)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def resize(rows: NDArray[np.uint8], its: Layout) -> NDArray[np.uint8]:
    """Return images of rows, by the CPU, where a device fails that they were meant for."""
    session = onnxruntime.InferenceSession(graph(its), providers=["CPUExecutionProvider"])
    parts = [rows[start : start + 8] for start in range(0, len(rows), 8)]  # a row takes some 10 MB
    return np.concatenate([session.run([RESIZED], {ROWS: part, WORDS: part.view(np.int32)})[0] for part in parts])


def examples(preprocessing: Preprocessing, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return rows of random images of odd sizes, and what `load` makes of these: both of them `count` times."""
    random, side, images = np.random.default_rng(0), preprocessing.size, []
    for number in range(EXAMPLES):
        height, width = random.integers(1, 3 * side, 2) if number else (side, side)
        noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        images.append(Image.fromarray(noise if number % 2 else noise // 128 * 255))  # the sharpest edges
    again = np.arange(count) % EXAMPLES
    rows, resized = ([make(image, preprocessing) for image in images] for make in (pack, load))
    return np.stack(rows)[again], np.stack(resized)[again]
