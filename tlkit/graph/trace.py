"""Trace PyTorch modules into ONNX graphs. PyTorch is traced here and nowhere else.

An architecture is traced once, and its graph is cached without weights, for the trunk and for every cut of it. The
graph of a trunk is that with its weights put in by name, then optimized, and cached under a hash of everything that
decides what it computes. `compose` cuts it and merges it with a head.
"""

from __future__ import annotations

import gzip
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from tlkit.errors import PluginError, TlkitError, UsageError
from tlkit.graph.cache import cached_graph
from tlkit.graph.compose import extract_graph, import_once, put_weights, remove_weights, stage_output
from tlkit.model.cut import JOINT, blocks_of
from tlkit.model.modules import ScoredHead
from tlkit.model.trunk import (
    HalfPrecision,
    StageOutputs,
    Trunk,
    architecture_hash,
    build,
    fingerprint,
    resized,
    shape_of,
    structure_hash,
    tensors,
)
from tlkit.plugin.blame import attributed, owner_of, summary
from tlkit.plugin.contract import BATCH, FEATURES, IMAGES, LOGITS, Backbone
from tlkit.util.resources import is_refused
from tlkit.util.text import format_bytes
from tlkit.version import __version__

OPSET = 20
IR_VERSION = 9  # the least that this opset needs; what older runtimes can read
STRUCTURES = "structures"  # in the metadata of a graph that a backbone comes with: what it was traced from
SIZES = range(64, 513, 32)  # pixels a side that such a graph is tried at, beside the backbone's own
LARGEST = 2**31 - 2**26  # bytes of weights in one file; protobuf ends at 2 GiB, with the head and the rest


def traceable(trunk: Trunk, cut: str) -> Trunk:
    """Return a trunk up to the deepest stage with which its weights fit into an ONNX file.

    Raises UsageError if the deepest stage of the cut is not among them.
    """
    deepest = blocks_of(cut)[-1]
    taken, wanted, names = 0, 0, list[str]()
    for name, stage in trunk.stages.items():
        taken += sum(tensor.nbytes for tensor in stage.state_dict().values())
        wanted = taken if name == deepest else wanted
        if taken <= LARGEST:
            names.append(name)
    if deepest not in names:
        what = f"the weights up to stage {deepest!r} take {format_bytes(wanted)}, more than an ONNX file holds"
        do = f"take an earlier stage: --strategy frozen --cut {names[-1]}" if names else "take another backbone"
        raise UsageError(what, do=do)
    return trunk if len(names) == len(trunk.names) else trunk.upto(names[-1])


def stage_graph(trunk: Trunk) -> Path:
    """Return the cached file of the graph that outputs the features of every stage."""
    return _cached(trunk, "", [stage_output(name) for name in trunk.names])


def map_graph(trunk: Trunk) -> Path:
    """Return the cached file of the graph that outputs the feature map of the last stage, channels last.

    The trainable stages begin with this map if those before are frozen.
    """
    return _cached(trunk, "-map", [_map_output(trunk.names[-1])])


def maps_graph(trunk: Trunk) -> Path:
    """Return the cached file of the graph that outputs the features of every stage, then their maps, channels last."""
    return _cached(trunk, "-maps", _all_outputs(trunk))


def write_graph(backbone: Backbone, file: Path, sizes: Iterable[int] = SIZES) -> None:
    """Write the graph of a backbone's stages, without weights, to the file that it comes with as its `graph`.

    So nobody has to trace it, which takes PyTorch longer than all else in a first training. It serves the backbone's
    own input size and those of `sizes` (pixels a side) at which tracing gives the same graph, but for shapes.
    """
    own = build(backbone, pretrained=False)
    graph, structures = _traced(own), [structure_hash(own)]
    for size in sorted(set(sizes) - {backbone.preprocessing.size}):
        try:
            other = build(backbone, pretrained=False, preprocessing=resized(backbone, size))
            same = _at(_traced(other), size) == _at(graph, size)
        except TlkitError:  # its stages do not take images of that size
            continue
        structures += [structure_hash(other)] if same else []
    graph.metadata_props.add(key=STRUCTURES, value=" ".join(structures))
    file.write_bytes(gzip.compress(graph.SerializeToString(deterministic=True), mtime=0))


def shipped_graph(trunk: Trunk) -> onnx.ModelProto | None:
    """Return the graph that a trunk's backbone comes with, if it is that of its stages, for the trunk's input size."""
    if trunk.graph is None or not trunk.graph.is_file():
        return None
    graph = onnx.load_model_from_string(gzip.decompress(trunk.graph.read_bytes()))
    known = {each.key: each.value for each in graph.metadata_props}
    if structure_hash(trunk) not in known.get(STRUCTURES, "").split():
        return None
    own = graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    size = trunk.preprocessing.size
    return _cleaned(graph if size == own else _at(graph, size))  # shapes are inferred with the weights


def half_precision_graph(trunk: Trunk) -> onnx.ModelProto:
    """Return the graph of a trunk, `images` to `features`, with the stages in float16."""
    module = HalfPrecision(trunk)

    def make() -> onnx.ModelProto:
        return remove_weights(_export(module, example_images(trunk), IMAGES, [FEATURES], optimize=False), module)

    suffix = f"-half-{trunk.cut}" if JOINT in trunk.cut else "-half"
    return _complete(onnx.load_model(_cached_architecture(trunk, suffix, make)), module)


def head_graph(head: nn.Module, width: int, scores: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the graph of a head: `features` to `logits` and its scores of these names."""
    return trace(ScoredHead(head, scores), torch.zeros(2, width), FEATURES, [LOGITS, *scores])


def trace(module: nn.Module, example: torch.Tensor, name: str, outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the ONNX graph of a module in eval mode, with a dynamic first axis and all weights inside."""
    return _export(module, example, name, outputs, optimize=True)


def _export(
    module: nn.Module, example: torch.Tensor, name: str, outputs: Sequence[str], *, optimize: bool
) -> onnx.ModelProto:
    """Return the ONNX graph of a module; not optimized, its weights keep their names and values."""
    module = module.eval().requires_grad_(False)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is missing, which none of our graphs needs
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=[name],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                verbose=False,
                optimize=optimize,
            )
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        if isinstance(error, TlkitError) or is_refused(root):
            raise
        what = f"PyTorch can't trace {owner_of(module) or type(module).__name__} to ONNX: {summary(root)}"
        raise attributed(error) or PluginError(what, do="see: tlkit plugins check") from error
    finally:
        logger.setLevel(level)
    return _cleaned(program.model_proto)


def _cleaned(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of PyTorch's without what tells of the machine, for runtimes of any age."""
    graph.ir_version = IR_VERSION
    import_once(graph)
    del graph.metadata_props[:]
    for node in graph.graph.node:  # stack traces name files of the machine that traced
        del node.metadata_props[:]
        node.doc_string = ""
    return graph


def _at(graph: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """Return a copy of a graph for images of `size` pixels a side, without the shapes of all other values."""
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    del other.graph.value_info[:]
    for output in other.graph.output:
        output.type.tensor_type.ClearField("shape")
    for side in other.graph.input[0].type.tensor_type.shape.dim[1:3]:
        side.dim_value = size
    return other


def example_images(trunk: Trunk) -> torch.Tensor:
    """Return two black images `(2, S, S, 3)` to trace with."""
    size = trunk.preprocessing.size
    return torch.zeros(2, size, size, 3, dtype=torch.uint8)


def _traced(trunk: Trunk) -> onnx.ModelProto:
    """Return the graph without weights of every output of `StageOutputs`, as PyTorch traces it."""
    module = StageOutputs(trunk)
    _check_outputs(trunk)
    return remove_weights(_export(module, example_images(trunk), IMAGES, _all_outputs(trunk), optimize=False), module)


def _cached(trunk: Trunk, suffix: str, outputs: list[str]) -> Path:
    """Return the file of the graph that computes some outputs of an architecture, with the weights of a trunk."""

    def make() -> onnx.ModelProto:
        return _complete(extract_graph(_architecture(trunk), outputs), StageOutputs(trunk))

    return cached_graph(f"{fingerprint(trunk)}-{_versions()}{suffix}", make)


def _architecture(trunk: Trunk) -> onnx.ModelProto:
    """Return the graph without weights of every output of `StageOutputs`; those of all cuts are cached with it."""

    def make() -> onnx.ModelProto:
        graph = shipped_graph(trunk) or _traced(trunk)
        for cut in trunk.names[:-1]:
            part = trunk.upto(cut)
            _cached_architecture(part, "", partial(extract_graph, graph, _all_outputs(part)))
        return graph

    return onnx.load_model(_cached_architecture(trunk, "", make))


def _check_outputs(trunk: Trunk) -> None:
    """Raise PluginError for a stage whose output, or pooled output, is not float32 with a row for each image."""
    with torch.no_grad():
        x = trunk.normalize(example_images(trunk))
        for name, stage in trunk.stages.items():
            x = stage(x)
            _check_output(f"the output of stage {name!r}", x, stage)
            _check_output(f"the pooled output of stage {name!r}", trunk.pool(x), stage, axes=2)


def _check_output(what: str, output: object, stage: nn.Module, axes: int = 0) -> None:
    if isinstance(output, torch.Tensor):
        fits = output.ndim == axes if axes else output.ndim > 1
        if fits and len(output) == 2 and output.dtype == torch.float32 and output.numel():
            return
    shown = shape_of(output)
    asked = "features torch.float32 (2, width)" if axes else "a tensor torch.float32 (2, ...)"
    do = "see: tlkit plugins check"
    raise PluginError(f"{owner_of(stage) or 'the backbone'}: {what} for two images is {shown}, not {asked}", do=do)


def _cached_architecture(trunk: Trunk, suffix: str, make: Callable[[], onnx.ModelProto]) -> Path:
    return cached_graph(f"{architecture_hash(trunk)}-{_versions()}-architecture{suffix}", make)


def _complete(graph: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """Return the graph of an architecture with a module's weights, optimized as PyTorch does: batch norms folded."""
    from onnxscript import ir  # not above: nothing needs it where all graphs are cached

    put_weights(graph, tensors(module))
    program = torch.onnx.ONNXProgram(ir.from_proto(graph), None)
    program.optimize()
    return _cleaned(program.model_proto)


def _all_outputs(trunk: Trunk) -> list[str]:
    return [*map(stage_output, trunk.names), *map(_map_output, trunk.names)]


def _map_output(stage: str) -> str:
    """Return the name of the output with the map of a stage, in the graph of an architecture."""
    return f"map.{stage}"


def _versions() -> str:
    return f"opset{OPSET}-{__version__}-{version('onnxscript')}"
