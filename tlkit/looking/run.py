"""A look into a network: filters of its first layer, patches that excite channels, and one image through the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tlkit.data.dataset import Sample
from tlkit.data.preprocessing import load
from tlkit.looking.page import page
from tlkit.looking.peaks import Patch, StageMaps, exciting
from tlkit.pages import html as pages
from tlkit.plugin.contract import Progress, silent
from tlkit.runtime.evidence import Evidence
from tlkit.runtime.model import Model, Prediction
from tlkit.runtime.session import OnnxSession, load_graph
from tlkit.util.text import counted

MAX_FILTERS = 96
PATCHES = 6  # of a channel
EVIDENCE = 2  # labels, the most probable first


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel of a stage: its number, the peak of the one image, and the patches of a dataset that excite it most."""

    number: int
    peak: float
    patches: tuple[Patch, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Maps `(h, w, channels)` of the one image at a stage, and the channels that it excites most for its kind."""

    name: str
    maps: NDArray[np.float32]
    channels: tuple[Channel, ...]


@dataclass(frozen=True)
class Look:
    """Result of a look into a network with one image; printed, a summary, and in a notebook the page.

    `filters` `(N, kh, kw, 3)` are those of the first convolution; `evidence` has a map `(h, w)` for each label.
    """

    image: Path
    prediction: Prediction
    pixels: NDArray[np.uint8] = field(repr=False)
    filters: NDArray[np.float32] = field(repr=False)
    stages: tuple[Stage, ...] = field(repr=False)
    evidence: dict[str, NDArray[np.float32]] = field(repr=False)
    method: str  # of the evidence
    images: int  # that patches were looked for in
    page: str = field(default="", repr=False)

    def __repr__(self) -> str:
        found = self.prediction
        lines = [f"{self.image.name}: {found.label}, {found.probability:.1%}", f"evidence: {self.method}"]
        lines.append(f"first layer: {counted(len(self.filters), 'filter')}")
        for stage in self.stages:
            height, width, count = stage.maps.shape
            numbers = ", ".join(str(each.number) for each in stage.channels)
            lines.append(f"{stage.name}: {height} x {width}, {counted(count, 'channel')}, most excited: {numbers}")
        return "\n".join([*lines, f"patches of {counted(self.images, 'image')}" if self.images else "no patches"])

    def _repr_html_(self) -> str:
        return pages.frame(self.page)

    def to_json(self) -> dict[str, Any]:
        """Return everything but pictures, as JSON values."""
        return {
            "prediction": self.prediction.to_json(),
            "filters": len(self.filters),
            "stages": {stage.name: _facts(stage) for stage in self.stages},
            "evidence": {label: found.tolist() for label, found in self.evidence.items()},
            "method": self.method,
            "images": self.images,
        }

    def save(self, file: Path) -> None:
        """Write the page."""
        pages.write(file, self.page)


def _facts(stage: Stage) -> dict[str, Any]:
    channels = [
        {
            "channel": each.number,
            "peak": each.peak,
            "patches": [{"name": p.sample.name, "activation": p.activation, "box": list(p.box)} for p in each.patches],
        }
        for each in stage.channels
    ]
    return {"shape": list(stage.maps.shape), "channels": channels}


def look(
    model: Model,
    maps: Path,
    names: Sequence[str],
    image: Path,
    samples: Sequence[Sample] = (),
    channels: int = 6,
    progress: Progress = silent,
) -> Look:
    """Look at an image with a model, and at images `samples` for what excites its channels most.

    `maps` is a graph from images to the features of each of the stages `names`, then to their maps. Of each stage so
    many channels are shown: those that the image excites most, compared with the samples if there are any.
    """
    pixels = load(image, model.preprocessing)
    (prediction,) = model.predict([image], topk=max(EVIDENCE, 5))
    with OnnxSession(maps) as session:
        stage_maps = StageMaps(session, names)
        own = {name: array[0] for name, array in stage_maps.run(pixels[None]).items()}
        counts = {name: array.shape[-1] for name, array in own.items()}
        found = exciting(stage_maps, counts, model.preprocessing, samples, PATCHES, progress("images", len(samples)))
    stages = []
    for name, array in own.items():
        peaks = array.max((0, 1))
        order = np.argsort(-found[name].stands_out(peaks), kind="stable")[:channels].tolist()
        shape, size = (array.shape[0], array.shape[1]), model.preprocessing.size
        shown = [(each, tuple(found[name].patches(each, samples, shape, size))) for each in order]
        stages.append(Stage(name, array, tuple(Channel(each, float(peaks[each]), some) for each, some in shown)))
    labels = prediction.labels[:EVIDENCE]
    with Evidence.of(model) as evidence:
        places = evidence.maps(np.repeat(pixels[None], len(labels), 0), [model.labels.index(each) for each in labels])
    result = Look(
        image=image,
        prediction=prediction,
        pixels=pixels,
        filters=first_filters(load_graph(maps)),
        stages=tuple(stages),
        evidence=dict(zip(labels, places, strict=True)),
        method=evidence.method,
        images=len(samples),
    )
    return replace(result, page=page(result, model.preprocessing))


def first_filters(graph: onnx.ModelProto) -> NDArray[np.float32]:
    """Return up to `MAX_FILTERS` filters `(N, kh, kw, 3)` of the first layer, if it is a convolution of colors."""
    tensors = {each.name: each for each in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Conv":
            weights = numpy_helper.to_array(tensors[node.input[1]]) if node.input[1] in tensors else np.zeros((0, 0))
            if weights.ndim != 4 or weights.shape[1] != 3:
                break
            return np.ascontiguousarray(weights.transpose(0, 2, 3, 1)[:MAX_FILTERS], np.float32)
    return np.zeros((0, 1, 1, 3), np.float32)
