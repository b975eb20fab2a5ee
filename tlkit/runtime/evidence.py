"""Evidence maps: the places of an image that a logit rests on.

Where a trunk ends in a mean over positions, each position is left out of the mean in turn: what the logit loses is that
position's evidence. One run of the trunk and a row of the head per position serve every head, without a gradient or a
layer to choose; for an affine head the map is that of CAM up to a constant (Zhou et al., "Learning Deep Features for
Discriminative Localization", CVPR 2016). Other networks are shown the image with a square covered in turn (occlusion:
Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

from tlkit.graph.layout import attributes
from tlkit.plugin.contract import IMAGES, LOGITS, Session
from tlkit.runtime.model import Model
from tlkit.runtime.session import HeadSession, OnnxSession, load_graph, on_disk

LEFT_OUT, OCCLUSION = "each position left out of the mean", "occlusion: each part of the image covered"
MAPS, POOLED = "evidence/maps", "evidence/pooled"
GRID = 7  # parts of an image per side that are covered
COVER = 127  # the level of gray that covers
BATCH = 8
SPATIAL = {(2, 3): 4, (1, 2): 4, (1,): 3}  # axes of a mean over positions, and the rank of what it is taken of


class Parts(NamedTuple):
    """A graph from images to the maps that are pooled, and one from their mean to logits; axes of the positions."""

    maps: onnx.ModelProto
    head: onnx.ModelProto
    axes: tuple[int, ...]


class Evidence:
    """Evidence maps of a session; a context manager. `method` says which kind they are.

    `graph` is what the session runs, where that is known, and `logits` the name of its output.
    """

    def __init__(self, session: Session, graph: onnx.ModelProto | None, logits: str = LOGITS) -> None:
        self._session, self._opened = session, ExitStack()
        parts = None if graph is None else taken_apart(graph, logits)
        self.method = OCCLUSION if parts is None else LEFT_OUT
        if parts is not None:
            self._axes = parts.axes
            self._maps, self._head = (self._open(graph) for graph in (parts.maps, parts.head))

    @classmethod
    def of(cls, model: Model) -> Self:
        """Open the evidence maps of a model."""
        known = isinstance(model.session, OnnxSession | HeadSession) and model.file.is_file()
        names = getattr(model.session, "names", {})
        return cls(model.session, load_graph(model.file) if known else None, names.get(LOGITS, LOGITS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._opened.close()

    def maps(self, images: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.float32]:
        """Return what the logit of a class loses at each place: `(N, h, w)` of images `(N, S, S, 3)`."""
        if self.method == OCCLUSION:
            return Occluded(self._session).maps(images, classes)
        starts = range(0, len(images), BATCH)
        return np.concatenate([self._left_out(images[at : at + BATCH], classes[at : at + BATCH]) for at in starts])

    def _open(self, graph: onnx.ModelProto) -> OnnxSession:
        file: Path = self._opened.enter_context(on_disk(graph))
        return self._opened.enter_context(OnnxSession(file))

    def _left_out(self, images: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.float32]:
        maps = np.moveaxis(self._maps.run(images)[MAPS], self._axes, range(1, 1 + len(self._axes)))
        height, width = maps.shape[1:3] if len(self._axes) == 2 else (_side(maps.shape[1]),) * 2
        positions = maps.reshape(len(maps), -1, maps.shape[-1])
        count = positions.shape[1]
        mean = positions.mean(1, keepdims=True, dtype=np.float64)
        # The mean itself, and the mean without each position.
        rows = np.concatenate([mean, (count * mean - positions) / max(1, count - 1)], axis=1).astype(np.float32)
        logits = np.stack([self._head.run(row)[LOGITS][:, label] for row, label in zip(rows, classes, strict=True)])
        return (logits[:, :1] - logits[:, 1:]).reshape(len(images), height, width)


class Occluded:
    """Evidence by occlusion, of any session: what a logit loses when one of `GRID` x `GRID` parts is covered."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def maps(self, images: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.float32]:
        """Return what the logit of a class loses at each place: `(N, h, w)` of images `(N, S, S, 3)`."""
        edges = np.linspace(0, images.shape[1], GRID + 1).astype(int)
        own = self._logits(images, classes)
        evidence = np.zeros((len(images), GRID, GRID), np.float32)
        for row in range(GRID):
            for column in range(GRID):
                covered = images.copy()
                covered[:, edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = COVER
                evidence[:, row, column] = own - self._logits(covered, classes)
        return evidence

    def _logits(self, images: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.float32]:
        parts = [
            self._session.run(images[start : start + BATCH], [LOGITS])[LOGITS] for start in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts)[np.arange(len(images)), list(classes)]


def taken_apart(graph: onnx.ModelProto, logits: str = LOGITS) -> Parts | None:
    """Return the graph in two parts, before and after its mean over positions; None if it has none to be parted at."""
    inferred = onnx.shape_inference.infer_shapes(graph)
    ranks = {each.name: len(each.type.tensor_type.shape.dim) for each in inferred.graph.value_info}
    for node, axes, kept in _means(inferred.graph):
        rank = ranks.get(node.input[0], SPATIAL[axes])
        if rank != SPATIAL[axes] or not _is_square(inferred.graph, node.input[0], axes):
            continue
        head = _after(graph, node.output[0], logits, axes if kept else ())
        if head is not None:
            return Parts(_before(graph, node.input[0], rank), head, axes)
    return None


def _means(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, tuple[int, ...], bool]]:
    """Yield the nodes that take a mean over positions, the last first, with their axes and whether these are kept."""
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for node in reversed(graph.node):
        settings = attributes(node)
        if node.op_type == "GlobalAveragePool":
            yield node, (2, 3), True
        elif node.op_type == "ReduceMean":
            given = constants.get(node.input[1]) if len(node.input) > 1 else settings.get("axes")
            rank = next((len(v.type.tensor_type.shape.dim) for v in graph.value_info if v.name == node.input[0]), 4)
            axes = () if given is None else tuple(sorted(int(axis) % rank for axis in np.ravel(given)))
            if axes in SPATIAL:
                yield node, axes, bool(settings.get("keepdims", 1))


def _is_square(graph: onnx.GraphProto, name: str, axes: tuple[int, ...]) -> bool:
    """Return whether positions lie in two dimensions, or are as many tokens as a square has."""
    shape = next((each.type.tensor_type.shape.dim for each in graph.value_info if each.name == name), None)
    count = 0 if shape is None or len(axes) == 2 else shape[1].dim_value
    return len(axes) == 2 or _side(count) ** 2 == count > 0


def _side(count: int) -> int:
    return math.isqrt(count)


def _before(graph: onnx.ModelProto, maps: str, rank: int) -> onnx.ModelProto:
    """Return the graph from images to the tensor `maps`, called `MAPS`."""
    part = onnx.ModelProto()
    part.CopyFrom(graph)
    part.graph.node.append(helper.make_node("Identity", [maps], [MAPS], name=MAPS))
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(MAPS, onnx.TensorProto.FLOAT, [None] * rank))
    return _needed(part, [IMAGES], [MAPS])


def _after(graph: onnx.ModelProto, mean: str, logits: str, kept: tuple[int, ...]) -> onnx.ModelProto | None:
    """Return the graph from `POOLED`, means `(N, width)`, to `LOGITS`; None if it needs more of the image than that."""
    part = onnx.ModelProto()
    part.CopyFrom(graph)
    inside = mean + "/in"
    for node in part.graph.node:
        node.input[:] = [inside if name == mean else name for name in node.input]
    if kept:  # the axes of the positions, with one position each
        axes = numpy_helper.from_array(np.array(kept, np.int64), inside + "/axes")
        part.graph.initializer.append(axes)
        part.graph.node.insert(0, helper.make_node("Unsqueeze", [POOLED, axes.name], [inside], name=inside))
    else:
        part.graph.node.insert(0, helper.make_node("Identity", [POOLED], [inside], name=inside))
    if logits != LOGITS:
        part.graph.node.append(helper.make_node("Identity", [logits], [LOGITS], name=LOGITS))
    elif mean == logits:
        return None
    del part.graph.input[:], part.graph.output[:]
    part.graph.input.append(helper.make_tensor_value_info(POOLED, onnx.TensorProto.FLOAT, [None, None]))
    part.graph.output.append(helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, [None, None]))
    needed = _needed(part, [POOLED], [LOGITS])
    given = {
        POOLED,
        *(each.name for each in needed.graph.initializer),
        *(o for n in needed.graph.node for o in n.output),
    }
    missing = {name for node in needed.graph.node for name in node.input if name} - given
    return None if missing or POOLED not in {name for node in needed.graph.node for name in node.input} else needed


def _needed(graph: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return a graph with only the nodes and initializers that its outputs need."""
    wanted, nodes = set(outputs), []
    for node in reversed(graph.graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= {name for name in node.input if name not in inputs}
    kept = [each for each in graph.graph.initializer if each.name in wanted]
    del graph.graph.node[:], graph.graph.initializer[:], graph.graph.value_info[:]
    graph.graph.node.extend(reversed(nodes))
    graph.graph.initializer.extend(kept)
    del graph.metadata_props[:]
    return graph


def heat(evidence: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return positive evidence `(h, w)` as it is drawn: `(side, side)`, at most 1, between places in proportion."""
    positive = Image.fromarray(np.maximum(evidence, 0.0) / max(float(evidence.max()), 1e-12))
    return np.asarray(positive.resize((side, side), Image.Resampling.BILINEAR))


def overlay(image: NDArray[np.uint8], evidence: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image `(S, S, 3)` in gray, with the places of positive evidence `(h, w)` in color."""
    share = heat(evidence, image.shape[0])[..., None]
    gray = np.repeat(image.astype(np.float32) @ (0.299, 0.587, 0.114), 3).reshape(image.shape) * 0.75 + 40
    color = np.concatenate([np.full_like(share, 255), 70 + 170 * share**2, 30 * np.ones_like(share)], axis=2)
    return np.clip(gray * (1 - 0.75 * share) + color * 0.75 * share, 0, 255).astype(np.uint8)
