"""The trained modules of a bundle, run by PyTorch: the reference that everything exported is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tlkit.graph import compose, metadata, trace
from tlkit.model.bundle import Bundle, Tensors
from tlkit.model.modules import graph_module, head_outputs, load_head, load_modules, run_half, run_modules
from tlkit.plugin.contract import FEATURES, IMAGES, LOGITS, PROBABILITIES, Backbone, Head, Session
from tlkit.util.statistics import activated
from tlkit.verification.parity import HeadOf

if TYPE_CHECKING:
    from torch import nn

    from tlkit.model.trunk import Trunk


class TrainedModules:
    """A bundle's modules in PyTorch, made by its components when they are first needed.

    `components` returns the backbone and the head that a bundle was trained with; where a plugin is missing it raises.
    """

    def __init__(self, bundle: Bundle, components: Callable[[Bundle], tuple[Backbone, Head]]) -> None:
        self.bundle, self._components = bundle, components

    @cached_property
    def head(self) -> Head:
        return self._components(self.bundle)[1]

    @cached_property
    def _modules(self) -> tuple[Trunk, nn.Module]:
        return load_modules(self.bundle, *self._components(self.bundle))

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return `features`, `logits` and scores of images `(N, S, S, 3)`, in eager mode on the CPU."""
        return run_modules(*self._modules, images, self.bundle.record.scores)

    def trunk_graph(self) -> onnx.ModelProto:
        """Return the graph of the trunk, from the one trace of its backbone."""
        return compose.cut_graph(onnx.load_model(trace.stage_graph(self._modules[0])), self.bundle.record.cut)

    def maps_graph(self) -> tuple[Path, tuple[str, ...]]:
        """Return the graph from images to the features, then the maps, of every stage, and the names of the stages."""
        return trace.maps_graph(self._modules[0]), self._modules[0].names

    def half_trunk_graph(self) -> onnx.ModelProto:
        """Return the graph of the trunk with its stages in half precision."""
        return trace.half_precision_graph(self._modules[0])

    def head_graph(self) -> onnx.ModelProto:
        return trace.head_graph(self._modules[1], self.bundle.record.width, self.bundle.record.scores)

    def module(self, graph: str, *, half: bool = False) -> nn.Module:
        """Return the trunk, head or model as one module: its input to a tuple of outputs; `half`: stages in float16."""
        return graph_module(graph, *self._modules, self.bundle.record, half=half)

    def half_features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features of images by the stages in float16, which PyTorch's CPU kernels really compute in."""
        return run_half(self._modules[0], images)

    def head_outputs(self, tensors: Tensors | None = None) -> HeadOf:
        """Return the head as a function, with the bundle's tensors or with those of one refitted at export."""
        module = load_head(self.bundle, self.head, self.bundle.head if tensors is None else tensors)
        return partial(head_outputs, module, scores=self.bundle.record.scores)

    def session(self) -> TrainedSession:
        """Return the modules as a session, as if they were an export."""
        return TrainedSession(self)


class TrainedSession(Session):
    """Images to features, logits, scores and probabilities by the trained modules."""

    input = IMAGES
    batch_size = 16

    def __init__(self, modules: TrainedModules) -> None:
        self._modules, record = modules, modules.bundle.record
        self.outputs = (FEATURES, LOGITS, *record.scores, PROBABILITIES)
        self.metadata = metadata.GraphMetadata.of(modules.bundle).to_props()

    def run(self, array: NDArray[Any], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        got = self._modules.run(array)
        got[PROBABILITIES] = activated(got[LOGITS], self._modules.bundle.record.activation)
        return {name: got[name] for name in outputs or self.outputs}
