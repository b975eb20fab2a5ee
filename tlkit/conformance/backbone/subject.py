"""What the checks of a backbone share: its stages, test images, what each stage makes of them, and the graph."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from tlkit.conformance.backbone.vary import vary
from tlkit.conformance.graph import trace
from tlkit.conformance.subject import Skipped, Subject, expect, prepared
from tlkit.conformance.watch import Watch, watching
from tlkit.errors import ResourceError
from tlkit.graph.compose import stage_output
from tlkit.model import trunk as trunks
from tlkit.plugin.contract import IMAGES, Backbone, Preprocessing
from tlkit.runtime.session import OnnxSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALL = slice(None)
BATCHES = (slice(0, 1), slice(1, 3), ALL)  # of 1, 2 and 5 images


class BackboneSubject(Subject[Backbone]):
    """A backbone under examination. What is prepared here is not to be changed: take a `fresh()` trunk for that."""

    def __init__(self, component: Backbone, **how: Any) -> None:
        super().__init__(component, **how)
        self.watch = Watch()

    @prepared("builds")
    def stages(self) -> Mapping[str, nn.Module]:
        """The stages with random weights, as the plugin returns them at first: a cache in it can't be filled yet."""
        with watching(self.watch), torch.random.fork_rng(devices=()):  # whoever sets a seed finds it untouched
            return self.component.stages(pretrained=False)

    @prepared("pixel-recipe")
    def preprocessing(self) -> Preprocessing:
        """The pixel recipe."""
        if not isinstance(self.component.preprocessing, Preprocessing):
            raise TypeError(f"pixels is {self.component.preprocessing!r}, not a Pixels")
        return self.component.preprocessing

    @prepared("stage-names")
    def built(self) -> trunks.Trunk:
        """A trunk as the plugin makes it, pretrained or random; it has not been run."""
        return self.pretrained_trunk() if self.pretrained else self.random_trunk()

    @prepared("chains")
    def trunk(self) -> trunks.Trunk:
        """The trunk under examination: pretrained, or random and `vary`ed, so that no layer is without effect."""
        return self.built if self.pretrained else self.vary(copy.deepcopy(self.built))

    def vary(self, trunk: trunks.Trunk) -> trunks.Trunk:
        """`trunk` with weights that hide nothing."""
        return vary(trunk, lambda: self.chain(trunk))

    def fresh(self) -> trunks.Trunk:
        """A copy of `trunk` to do anything with."""
        return copy.deepcopy(self.trunk).requires_grad_(True)

    def random_trunk(self) -> trunks.Trunk:
        """A trunk with the random weights that the plugin gives it."""
        _ = self.stages, self.preprocessing  # whose own checks fail where these can't be had
        return trunks.build(self.component, pretrained=False)

    def pretrained_trunk(self) -> trunks.Trunk:
        """A trunk with the pretrained weights. Skips the check where these can't be had."""
        if not self.pretrained:
            raise Skipped("it needs the pretrained weights, which are looked for only when asked to")
        _ = self.preprocessing
        try:
            return trunks.build(self.component, pretrained=True)
        except ResourceError as missing:
            raise Skipped(missing.what) from missing

    @property
    def images(self) -> Tensor:
        """Five images, uint8 `(5, S, S, 3)`: noise, coarse noise, a gradient, black and white."""
        return self.prepare("images", "pixel-recipe", lambda: _images(self.preprocessing.size))

    @prepared("chains")
    def maps(self) -> list[Tensor]:
        """What each stage makes of the images, `(5, ...)`, not pooled."""
        with torch.inference_mode():
            return self.chain(self.trunk)

    def chain(self, trunk: trunks.Trunk) -> list[Tensor]:
        """What each stage of a trunk gives; copies, whatever the next stage does to it."""
        x, outputs = trunk.normalize(self.images), []
        for name, stage in trunk.stages.items():
            x = stage(x.clone())
            expect(isinstance(x, Tensor), f"{name} gives {type(x).__name__}", do="have each stage return one tensor")
            outputs.append(x.clone())
        return outputs

    @prepared("pools")
    def features(self) -> list[NDArray[np.float32]]:
        """The features `(5, width)` of each stage."""
        with torch.inference_mode():
            return [self.trunk.pool(x).numpy() for x in self.maps]

    @prepared("chains")
    def parts(self) -> list[tuple[slice, list[NDArray[np.float32]]]]:
        """The features of each stage for a batch of 1 and another of 2 images, and which of the five these are."""
        return [(rows, self.run(self.trunk, rows)) for rows in BATCHES[:2]]

    def run(self, trunk: trunks.Trunk, rows: slice = ALL) -> list[NDArray[np.float32]]:
        """The features `(N, width)` of each stage for those of the images."""
        with torch.inference_mode():
            return [features.numpy() for features in trunks.StageFeatures(trunk)(self.images[rows])]

    @prepared("traces")
    def graph(self) -> onnx.ModelProto:
        """The graph of all stages, traced once."""
        size = self.preprocessing.size
        example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        taps = [stage_output(name) for name in self.trunk.names]
        return trace(trunks.StageFeatures(self.fresh()), example, IMAGES, taps)

    @prepared("traces")
    def session(self) -> OnnxSession:
        """The graph, opened with ONNX Runtime."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "taps.onnx")
            onnx.save_model(self.graph, file)
            return OnnxSession(file)


def _images(size: int) -> Tensor:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (size, size, 3))
    cells = math.ceil(size / 8)
    coarse = random.integers(0, 256, (8, 8, 3)).repeat(cells, 0).repeat(cells, 1)[:size, :size]
    ramp = np.linspace(0, 255, size)[:, None, None] * np.linspace(1, 0, size)[None, :, None] * np.ones(3)
    plain = [np.full((size, size, 3), level) for level in (0, 255)]
    return torch.from_numpy(np.stack([noise, coarse, ramp, *plain]).astype(np.uint8))


SUBJECT = BackboneSubject
