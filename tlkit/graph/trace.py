"""From modules to ONNX graphs. PyTorch is traced here and nowhere else.

A trunk is traced once, at every stage, and kept in the cache under a hash of all that decides what it computes.
`trunk.onnx` is the part of that graph that ends at the cut, and `model.onnx` is `trunk.onnx` and `head.onnx` joined:
cutting and joining need no second trace, so all of them are the same graph.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import torch
from onnx import compose, helper
from torch import nn

from tlkit.model.bundle import Bundle, Tensors
from tlkit.model.trunk import Half, LastMap, Taps, Trunk, build, fingerprint, load_tensors
from tlkit.plugin.contract import BATCH, FEATURES, IMAGES, LOGITS, PROBABILITIES, Backbone, Head
from tlkit.util.files import atomic_file, cache_dir
from tlkit.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 20
MAP = "map"


def tap(stage: str) -> str:
    """The name of the output that holds the features of one stage in the graph of all stages."""
    return f"{FEATURES}.{stage}"


def taps_graph(trunk: Trunk) -> Path:
    """The file of a graph that gives the features of every stage, traced at the first call on this machine."""
    file = _graph_file(trunk)
    if not file.exists():
        graph = trace(Taps(trunk), _example(trunk), IMAGES, [tap(name) for name in trunk.names])
        _save(graph, file)
    return file


def map_graph(trunk: Trunk) -> Path:
    """The file of a graph that gives the output of the last stage, not pooled, with channels last where it has space.

    It is what stages after it begin with when those up to it are frozen. Traced at the first call on this machine.
    """
    file = _graph_file(trunk, "-map")
    if not file.exists():
        graph = trace(LastMap(trunk), _example(trunk), IMAGES, [MAP])
        _save(graph, file)
    return file


def keep_cut(trunk: Trunk, cut: str) -> Path:
    """As `taps_graph` for the trunk that ends at `cut`, taken out of the graph of the whole one without a trace."""
    part = trunk.upto(cut)
    file = _graph_file(part)
    if not file.exists():
        whole = onnx.load_model(taps_graph(trunk))
        _save(onnx.utils.Extractor(whole).extract_model([IMAGES], [tap(name) for name in part.names]), file)
    return file


def trunk_graph(taps: onnx.ModelProto, cut: str) -> onnx.ModelProto:
    """The part of the graph of all stages that ends at `cut`: `images` to `features`."""
    extractor = onnx.utils.Extractor(taps)
    graph = extractor.extract_model([IMAGES], [tap(cut)])
    _rename(graph, {tap(cut): FEATURES})
    return graph


def half_graph(trunk: Trunk) -> onnx.ModelProto:
    """As `trunk_graph` at the trunk's own cut, with the stages in half precision."""
    return trace(Half(trunk), _example(trunk), IMAGES, [FEATURES])


def head_graph(head: nn.Module, width: int) -> onnx.ModelProto:
    """`features` to `logits`."""
    return trace(head, torch.zeros(2, width), FEATURES, [LOGITS])


def model_graph(trunk: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """`images` to `features`, `logits` and `probabilities`."""
    # The two were traced apart and use the same names inside.
    head = compose.add_prefix(head, "head/", rename_inputs=False, rename_outputs=False)
    features = helper.make_tensor_value_info("head/" + FEATURES, onnx.TensorProto.FLOAT, None)
    _rename(head, {FEATURES: features.name})
    model: onnx.ModelProto = compose.merge_models(
        trunk, head, io_map=[(FEATURES, features.name)], outputs=[FEATURES, LOGITS], producer_name="tlkit"
    )
    add_probabilities(model.graph, LOGITS, PROBABILITIES)
    return model


def add_probabilities(graph: onnx.GraphProto, logits: str, probabilities: str) -> None:
    """One more output of a graph: the softmax of its output `logits`."""
    shape = next(output for output in graph.output if output.name == logits).type.tensor_type
    graph.node.append(helper.make_node("Softmax", [logits], [probabilities], name=probabilities, axis=-1))
    graph.output.append(helper.make_tensor_value_info(probabilities, onnx.TensorProto.FLOAT, None))
    graph.output[-1].type.tensor_type.CopyFrom(shape)


def describe(graph: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Write into a graph what is needed to use it, see `metadata.facts`; what it said before is gone."""
    helper.set_model_props(graph, dict(facts))
    graph.producer_name, graph.producer_version = "tlkit", __version__


def trace(module: nn.Module, example: torch.Tensor, name: str, outputs: Sequence[str]) -> onnx.ModelProto:
    """An ONNX graph of a module in eval mode, its first axis dynamic, its weights inside the one file."""
    module = module.eval().requires_grad_(False)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it warns that torchvision is not installed, which no graph of ours needs
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=[name],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    graph: onnx.ModelProto = cast("torch.onnx.ONNXProgram", program).model_proto
    del graph.metadata_props[:]
    for node in graph.graph.node:  # stack traces name files of the machine that traced
        del node.metadata_props[:]
        node.doc_string = ""
    return graph


def reference(trunk: Trunk, head: nn.Module, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What the modules themselves give for images `(N, S, S, 3)`: `features` and `logits`, to hold graphs against."""
    with torch.inference_mode():
        parts = [trunk(torch.from_numpy(part)) for part in np.array_split(images, math.ceil(len(images) / 8))]
        features = torch.cat(parts)
        return {FEATURES: features.numpy(), LOGITS: head(features).numpy()}


def modules(bundle: Bundle, backbone: Backbone, head: Head) -> tuple[Trunk, nn.Module]:
    """The trunk and the head of a bundle in PyTorch, with the bundle's weights, in eval mode."""
    record = bundle.record
    trunk = build(backbone, pretrained=False, preprocessing=record.preprocessing).upto(record.cut)
    load_tensors(trunk, bundle.trunk, what="trunk")
    return trunk, head_module(bundle, head, bundle.head)


def head_module(bundle: Bundle, head: Head, tensors: Tensors) -> nn.Module:
    """A head for a bundle's trunk and labels, with these tensors, in eval mode."""
    given = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    return head.restore(bundle.record.width, len(bundle.record.labels), given).eval()


def head_logits(head: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the module itself gives for features `(N, width)`: `(N, classes)`."""
    with torch.inference_mode():
        given: NDArray[np.float32] = head(torch.from_numpy(features)).numpy()
    return given


def _example(trunk: Trunk) -> torch.Tensor:
    """Two black images, to trace with."""
    size = trunk.preprocessing.size
    return torch.zeros(2, size, size, 3, dtype=torch.uint8)


def _graph_file(trunk: Trunk, kind: str = "") -> Path:
    return cache_dir("graphs") / f"{fingerprint(trunk)}-opset{OPSET}-{__version__}{kind}.onnx"


def _save(graph: onnx.ModelProto, file: Path) -> None:
    with atomic_file(file) as temporary:
        onnx.save_model(graph, temporary)


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors wherever they stand."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
