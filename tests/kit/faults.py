"""Faults that deployment can bring in, to plant them into exported model graphs.

One that changes nothing in a graph is none: channels of the same mean can't be mistaken for each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tlkit.errors import PluginError
from tlkit.graph import layout
from tlkit.runtime.session import OnnxSession


def facts(graph):
    return {prop.key: prop.value for prop in graph.metadata_props}


def preprocessed(**change):
    """Plant another preprocessing into the metadata of a graph."""

    def plant(graph):
        preprocessing = json.loads(facts(graph)["tlkit.preprocessing"]) | change
        helper.set_model_props(graph, {**facts(graph), "tlkit.preprocessing": json.dumps(preprocessing)})

    return plant


def constants(graph):
    """Return the constants that normalize pixels, mean and factor: per channel, or in int8 per place of a row.

    An int8 graph that takes pixels as they are has a zero point and a scale instead.
    """
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    named = [
        tensor for part in ("mean", "scale") for name, tensor in tensors.items() if name.endswith(f"normalize.{part}")
    ]
    if named:
        return named
    name = "images"
    while True:
        reader = layout.readers(graph.graph, name)[0]
        if reader.op_type == "DequantizeLinear":
            return [tensors[reader.input[2]], tensors[reader.input[1]]]
        name = reader.output[0]


def turned_round(mean):
    """Blue's for red."""
    return np.flip(mean, list(mean.shape).index(3)) if mean.ndim else mean


def normalize(which, change):
    """Another mean or standard deviation inside the graph."""

    def plant(graph):
        tensor = constants(graph)[which]
        array = numpy_helper.to_array(tensor)
        changed = np.asarray(change(array.astype(np.float32))).astype(array.dtype)
        if np.array_equal(changed, array):  # another way to write the same down is no fault
            return
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed).reshape(array.shape), tensor.name))

    return plant


def swap_channels(graph):
    """Blue for red, as a picture library that reads BGR would have it."""
    for node in graph.graph.node:
        node.input[:] = ["images.bgr" if name == "images" else name for name in node.input]
    order = numpy_helper.from_array(np.array([2, 1, 0]), "bgr")
    graph.graph.initializer.append(order)
    graph.graph.node.insert(0, helper.make_node("Gather", ["images", "bgr"], ["images.bgr"], name="bgr", axis=3))


def swap_labels(graph):
    labels = json.loads(facts(graph)["tlkit.labels"])
    helper.set_model_props(graph, {**facts(graph), "tlkit.labels": json.dumps([labels[1], labels[0], *labels[2:]])})


def instead(graph, output):
    """Give an output of a graph another name, so that something else can take its place."""
    for node in graph.graph.node:
        node.output[:] = [f"{output}.trained" if name == output else name for name in node.output]


def swap_logits(graph):
    """The head's first two outputs the other way round."""
    instead(graph, "logits")
    order = [1, 0, *range(2, len(json.loads(facts(graph)["tlkit.labels"])))]
    graph.graph.initializer.append(numpy_helper.from_array(np.array(order), "order"))
    last = helper.make_node("Gather", ["logits.trained", "order"], ["logits"], name="order", axis=1)
    softmax = next(index for index, node in enumerate(graph.graph.node) if "logits" in node.input)
    graph.graph.node.insert(softmax, last)


def change_weight(graph):
    """The largest weight of the head, doubled; below fp32, the tolerance for other machines lets less pass."""
    classes = len(json.loads(facts(graph)["tlkit.labels"]))
    tensors = (t for t in graph.graph.initializer if len(t.dims) == 2 and t.name.startswith("head/"))
    tensor = next(t for t in tensors if classes in t.dims)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[np.abs(array).argmax()] *= 2
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def raise_threshold(graph):
    """Another novelty from which on an image is unknown."""
    threshold = json.loads(facts(graph)["tlkit.novelty"])
    helper.set_model_props(graph, {**facts(graph), "tlkit.novelty": json.dumps(1.01 * threshold)})


def swap_detector(graph):
    """Another detector: novelty is the largest logit with its sign turned round."""
    instead(graph, "novelty")
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1]), "classes"))
    largest = helper.make_node("ReduceMax", ["logits", "classes"], ["largest"], name="largest", keepdims=0)
    graph.graph.node.extend([largest, helper.make_node("Neg", ["largest"], ["novelty"], name="turned")])


def stretch_novelty(graph):
    """The novelty divided by another scale, which moves the threshold as well."""
    instead(graph, "novelty")
    graph.graph.initializer.append(numpy_helper.from_array(np.array(1.1, np.float32), "stretch"))
    graph.graph.node.append(helper.make_node("Div", ["novelty.trained", "stretch"], ["novelty"], name="stretch"))


FAULTS = {
    "another mean": normalize(0, lambda mean: mean * 0.9),
    "another std": normalize(1, lambda scale: scale * 0.9),
    "mean of the channels turned round": normalize(0, turned_round),
    "swapped channels": swap_channels,
    "another resize filter": preprocessed(interpolation="nearest"),
    "another crop": preprocessed(crop_pct=0.8),
    "another crop mode": preprocessed(crop_mode="border"),
    "swapped labels": swap_labels,
    "swapped logits": swap_logits,
    "a changed weight": change_weight,
}
OF_NOVELTY = {
    "another threshold of novelty": raise_threshold,
    "another scale of novelty": stretch_novelty,
    "a swapped detector": swap_detector,
}


def planted(fault, file):
    """Plant a fault into a graph; whether that changed anything."""
    graph = onnx.load(file)
    before = graph.SerializeToString()
    (FAULTS | OF_NOVELTY)[fault](graph)
    onnx.save(graph, file)
    return graph.SerializeToString() != before


def caught(examine: Callable[[], Any]) -> bool:
    """Return whether a comparison fails, or is refused because the session gives rows too few."""
    try:
        return not examine().passed
    except PluginError as refused:
        return " rows of " in str(refused)


class Drops(OnnxSession):
    """A server that forgets the last batch where it is not full."""

    def run(self, array, outputs=None):
        whole = len(array) - len(array) % 2 or 1
        return super().run(array[:whole], outputs)
