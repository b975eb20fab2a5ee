"""Objects that the checks of a backbone share: stages, test images, the outputs of each stage, and the graph."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkit.conformance.backbone.exported import open_graph, trace
from tlkit.conformance.backbone.vary import vary
from tlkit.conformance.pictures import preprocessed
from tlkit.conformance.subject import Skipped, Subject, expect, prepared
from tlkit.conformance.watch import Watch, watching
from tlkit.errors import ResourceError
from tlkit.graph.compose import stage_output
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import IMAGES, Backbone, Preprocessing
from tlkit.runtime.session import OnnxSession

ALL = slice(None)
BATCHES = (slice(0, 1), slice(1, 3), ALL)  # of 1, 2 and 5 images


class BackboneSubject(Subject[Backbone]):
    """Backbone under test. Prepared objects must not be changed: `fresh()` returns a trunk for that."""

    def __init__(self, component: Backbone, **how: Any) -> None:
        super().__init__(component, **how)
        self.watch = Watch()

    @prepared("builds")
    def stages(self) -> Mapping[str, nn.Module]:
        """Stages with random weights from the plugin's first call, when no cache in it is filled."""
        with watching(self.watch), torch.random.fork_rng(devices=()):  # whoever sets a seed finds it untouched
            return self.component.stages(pretrained=False)

    @prepared("preprocessing")
    def preprocessing(self) -> Preprocessing:
        """Preprocessing that it declares."""
        if not isinstance(self.component.preprocessing, Preprocessing):
            raise TypeError(f"preprocessing is {self.component.preprocessing!r}, not a Preprocessing")
        return self.component.preprocessing

    @prepared("stage-names")
    def built(self) -> trunks.Trunk:
        """Trunk as the plugin builds it, pretrained or random; it has not been run."""
        return self.pretrained_trunk() if self.pretrained else self.builds[0]

    @prepared("stage-names")
    def builds(self) -> tuple[trunks.Trunk, trunks.Trunk]:
        """Two builds with random weights."""
        return self.random_trunk(), self.random_trunk()

    @prepared("chains")
    def trunk(self) -> trunks.Trunk:
        """Trunk under test: pretrained, or random and varied (see `vary`), so that every layer has an effect."""
        return self.built if self.pretrained else self.vary(copy.deepcopy(self.built))

    def vary(self, trunk: trunks.Trunk) -> trunks.Trunk:
        """Return `trunk` with varied weights."""
        return vary(trunk, lambda: self.chain(trunk, self.fitting))

    def fresh(self) -> trunks.Trunk:
        """Return a copy of `trunk` that may be changed."""
        return copy.deepcopy(self.trunk).requires_grad_(True)

    def random_trunk(self) -> trunks.Trunk:
        """Return a trunk with the random weights of the plugin."""
        _ = self.stages, self.preprocessing  # their own checks fail if these are wrong
        return trunks.build(self.component, pretrained=False)

    def pretrained_trunk(self) -> trunks.Trunk:
        """Return a trunk with the pretrained weights. Skips the check if they are not available."""
        if not self.pretrained:
            raise Skipped("it needs the pretrained weights; pass --pretrained, or pretrained=True")
        _ = self.preprocessing
        try:
            return trunks.build(self.component, pretrained=True)
        except ResourceError as missing:
            raise Skipped(missing.what) from missing

    @prepared("preprocessing")
    def images(self) -> Tensor:
        """Five images, uint8 `(5, S, S, 3)`: noise, coarse noise, a gradient, black, white."""
        return _images(self.preprocessing.size)

    @prepared("preprocessing")
    def fitting(self) -> Tensor:
        """Images that batch norms with random weights are fitted to, uint8 `(25, S, S, 3)`: test images and pictures.

        Fitted to noise or to a few pictures, they would magnify rounding errors of others.
        """
        return torch.cat([self.images, torch.as_tensor(preprocessed(self.preprocessing))])

    @prepared("chains")
    def maps(self) -> list[Tensor]:
        """Output `(5, ...)` of each stage for the images, not pooled."""
        with torch.inference_mode():
            return self.chain(self.trunk, self.images)

    def chain(self, trunk: trunks.Trunk, images: Tensor) -> list[Tensor]:
        """Return a copy of the output of each stage of a trunk for images."""
        x, outputs = trunk.normalize(images), []
        for name, stage in trunk.stages.items():
            x = stage(x.clone())
            expect(isinstance(x, Tensor), f"{name} gives {type(x).__name__}", do="have each stage return one tensor")
            outputs.append(x.clone())
        return outputs

    @prepared("pools")
    def features(self) -> list[NDArray[np.float32]]:
        """Features `(5, width)` of each stage."""
        with torch.inference_mode():
            return [self.trunk.pool(x).numpy() for x in self.maps]

    @prepared("chains")
    def parts(self) -> list[tuple[slice, list[NDArray[np.float32]]]]:
        """Features of each stage for batches of 1 and 2 of the images, and the slice of the images."""
        return [(rows, self.run(self.trunk, rows)) for rows in BATCHES[:2]]

    def run(self, trunk: trunks.Trunk, rows: slice = ALL) -> list[NDArray[np.float32]]:
        """Return the features `(N, width)` of each stage for a slice of the images."""
        with torch.inference_mode():
            return [features.numpy() for features in trunks.StageFeatures(trunk)(self.images[rows])]

    @staticmethod
    def different_tensors(one: nn.Module, other: nn.Module) -> list[str]:
        """Return the names of the tensors whose type or shape differs, or which only one of the modules has."""
        layouts = [{name: (t.dtype, t.shape) for name, t in module.state_dict().items()} for module in (one, other)]
        return sorted({name for name, _ in layouts[0].items() ^ layouts[1].items()})

    @prepared("traces")
    def graph(self) -> onnx.ModelProto:
        """ONNX graph of all stages, traced once."""
        size = self.preprocessing.size
        example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        taps = [stage_output(name) for name in self.trunk.names]
        return trace(trunks.StageFeatures(self.fresh()), example, IMAGES, taps)

    @prepared("traces")
    def session(self) -> OnnxSession:
        """The graph, opened with ONNX Runtime."""
        return open_graph(self.graph)


def _images(size: int) -> Tensor:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (size, size, 3))
    cells = math.ceil(size / 8)
    coarse = random.integers(0, 256, (8, 8, 3)).repeat(cells, 0).repeat(cells, 1)[:size, :size]
    ramp = np.linspace(0, 255, size)[:, None, None] * np.linspace(1, 0, size)[None, :, None] * np.ones(3)
    plain = [np.full((size, size, 3), level) for level in (0, 255)]
    return torch.from_numpy(np.stack([noise, coarse, ramp, *plain]).astype(np.uint8))


SUBJECT = BackboneSubject
