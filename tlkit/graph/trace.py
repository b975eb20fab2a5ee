"""Trace PyTorch modules into ONNX graphs. PyTorch is traced here and nowhere else.

A trunk is traced once, with the features of every stage as outputs, and cached under a hash of everything that decides
what it computes. `compose` cuts that graph and merges it with a head.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import onnx
import torch
from torch import nn

from tlkit.errors import PluginError, TlkitError
from tlkit.graph.cache import cached_graph
from tlkit.graph.compose import extract_graph, import_once, stage_output
from tlkit.model.modules import ScoredHead
from tlkit.model.trunk import FeatureMap, HalfPrecision, StageFeatures, Trunk, fingerprint
from tlkit.plugin.blame import attributed, summary
from tlkit.plugin.contract import BATCH, FEATURES, IMAGES, LOGITS
from tlkit.version import __version__

OPSET = 20
IR_VERSION = 9  # the least that this opset needs; what older runtimes can read
MAP = "map"


def stage_graph(trunk: Trunk) -> Path:
    """Return the cached file of the graph that outputs the features of every stage."""
    outputs = [stage_output(name) for name in trunk.names]
    return _cached(trunk, "", lambda: trace(StageFeatures(trunk), example_images(trunk), IMAGES, outputs))


def map_graph(trunk: Trunk) -> Path:
    """Return the cached file of the graph that outputs the feature map of the last stage, channels last.

    The trainable stages begin with this map if those before are frozen.
    """
    return _cached(trunk, "-map", lambda: trace(FeatureMap(trunk), example_images(trunk), IMAGES, [MAP]))


def cut_stage_graph(trunk: Trunk, cut: str) -> Path:
    """Return the file of `stage_graph` for the trunk that ends at `cut`, cut from that of the full trunk."""
    part = trunk.upto(cut)
    outputs = [stage_output(name) for name in part.names]
    return _cached(part, "", lambda: extract_graph(onnx.load_model(stage_graph(trunk)), outputs))


def half_precision_graph(trunk: Trunk) -> onnx.ModelProto:
    """Return the graph of a trunk, `images` to `features`, with the stages in float16."""
    return trace(HalfPrecision(trunk), example_images(trunk), IMAGES, [FEATURES])


def head_graph(head: nn.Module, width: int, scores: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the graph of a head: `features` to `logits` and its scores of these names."""
    return trace(ScoredHead(head, scores), torch.zeros(2, width), FEATURES, [LOGITS, *scores])


def trace(module: nn.Module, example: torch.Tensor, name: str, outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the ONNX graph of a module in eval mode, with a dynamic first axis and all weights inside."""
    module = module.eval().requires_grad_(False)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is missing, which none of our graphs needs
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
    except (MemoryError, TlkitError):
        raise
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        what = f"PyTorch can't trace {type(module).__name__} to ONNX: {summary(root)}"
        raise attributed(error) or PluginError(what, do="see: tlkit plugins check, of the backbone or head") from error
    finally:
        logger.setLevel(level)
    graph: onnx.ModelProto = cast("torch.onnx.ONNXProgram", program).model_proto
    graph.ir_version = IR_VERSION
    import_once(graph)
    del graph.metadata_props[:]
    for node in graph.graph.node:  # stack traces name files of the machine that traced
        del node.metadata_props[:]
        node.doc_string = ""
    return graph


def example_images(trunk: Trunk) -> torch.Tensor:
    """Return two black images `(2, S, S, 3)` to trace with."""
    size = trunk.preprocessing.size
    return torch.zeros(2, size, size, 3, dtype=torch.uint8)


def _cached(trunk: Trunk, suffix: str, make: Callable[[], onnx.ModelProto]) -> Path:
    """Return the file of a graph of a trunk, made once per machine."""
    return cached_graph(f"{fingerprint(trunk)}-opset{OPSET}-{__version__}{suffix}", make)
