"""Two minimal graphs with everything that an exported classifier has, made without torch, and as PyTorch modules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from tlkit.graph import metadata
from tlkit.plugin.contract import BATCH, FEATURES, IMAGES, LOGITS, BuildSource

if TYPE_CHECKING:
    from torch import Tensor, nn

SIZE, WIDTH, CLASSES = 16, 8, 3
FACTS = {metadata.LABELS: '["a", "b", "c"]', metadata.BUNDLE: "0" * 64}

_OPEN = 'ir_version: 10, opset_import: ["": 20]'
_FEATURES, _LOGITS = f"float[{BATCH}, {WIDTH}] {FEATURES}", f"float[{BATCH}, {CLASSES}] {LOGITS}"
_LINEAR = f"{LOGITS} = Gemm <transB = 1> ({FEATURES}, weight, bias)"
_MODEL = f"""
<{_OPEN}> small (uint8[{BATCH}, {SIZE}, {SIZE}, 3] {IMAGES}) => ({_FEATURES}, {_LOGITS}) {{
    numbers = Cast <to = 1> ({IMAGES})
    centered = Sub (numbers, mean)
    normalized = Mul (centered, scale)
    input = Transpose <perm = [0, 3, 1, 2]> (normalized)
    map = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (input, filters, offsets)
    active = Relu (map)
    {FEATURES} = ReduceMean <keepdims = 0> (active, space)
    {_LINEAR}
}}
"""
_HEAD = f"<{_OPEN}> small ({_FEATURES}) => ({_LOGITS}) {{ {_LINEAR} }}"


def images(count: int) -> NDArray[np.uint8]:
    """Return noise, uint8 `(count, S, S, 3)`."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def model() -> onnx.ModelProto:
    """Return images to features and logits: cast, normalize, transpose, convolution, ReLU, mean, linear."""
    random = np.random.default_rng(1)
    weights = {
        "mean": np.array([100.0, 120.0, 140.0]),
        "scale": np.array([0.02, 0.015, 0.01]),
        "filters": random.normal(0.0, 0.3, (WIDTH, 3, 3, 3)),
        "offsets": random.normal(0.0, 0.1, WIDTH),
    }
    made = _graph(_MODEL, weights)
    made.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), "space"))
    return made


def head() -> onnx.ModelProto:
    """Return the graph from features to logits."""
    return _graph(_HEAD, {})


def source(file: Path) -> BuildSource:
    """Return the file of one of the two graphs as a source to build from."""
    graph = onnx.load_model(file)

    def example(count: int) -> NDArray[Any]:
        random = np.random.default_rng(3).normal(size=(count, WIDTH)).astype(np.float32)
        return images(count) if graph.graph.input[0].name == IMAGES else random

    return metadata.build_source(file, lambda: module(graph), example)


def module(graph: onnx.ModelProto) -> nn.Module:
    """Return one of the two graphs as a PyTorch module."""
    import torch
    from torch import nn

    class Small(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            known = dict(self.named_buffers())
            if "filters" not in known:
                return (nn.functional.linear(x, known["weight"], known["bias"]),)
            planes = ((x.float() - known["mean"]) * known["scale"]).permute(0, 3, 1, 2)
            maps = nn.functional.conv2d(planes, known["filters"], known["offsets"], stride=2, padding=1)
            features = maps.relu().mean((2, 3))
            return features, nn.functional.linear(features, known["weight"], known["bias"])

    made = Small().eval()
    for tensor in graph.graph.initializer:
        made.register_buffer(tensor.name, torch.from_numpy(numpy_helper.to_array(tensor).copy()))
    return made


def _graph(text: str, weights: dict[str, NDArray[np.float64]]) -> onnx.ModelProto:
    random = np.random.default_rng(2)
    linear = {"weight": random.normal(size=(CLASSES, WIDTH)), "bias": random.normal(size=CLASSES)}
    made = parser.parse_model(text)
    for name, array in (weights | linear).items():
        made.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    helper.set_model_props(made, FACTS)
    return made
