"""Faults that deployment can bring in, to plant them into exported model graphs."""

from __future__ import annotations

import json

import numpy as np
from onnx import helper, numpy_helper

from tlkit.deploy.session import OnnxSession


def facts(graph):
    return {prop.key: prop.value for prop in graph.metadata_props}


def recipe(**change):
    """Another pixel recipe in what the graph says of itself."""

    def plant(graph):
        pixels = json.loads(facts(graph)["tlkit.pixels"]) | change
        helper.set_model_props(graph, {**facts(graph), "tlkit.pixels": json.dumps(pixels)})

    return plant


def constants(graph):
    """What pixels are normalised with: mean and scale, for each channel, or in int8 for each place of a row."""
    return [
        next(tensor for tensor in graph.graph.initializer if tensor.name.endswith(f"normalise.{name}"))
        for name in ("mean", "scale")
    ]


def turned_round(mean):
    """Blue's for red."""
    return np.flip(mean, list(mean.shape).index(3))


def normalise(which, change):
    """Another mean or standard deviation inside the graph."""

    def plant(graph):
        tensor = constants(graph)[which]
        array = change(numpy_helper.to_array(tensor)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))

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


def swap_logits(graph):
    """The head's first two outputs the other way round."""
    for node in graph.graph.node:
        node.output[:] = ["logits.trained" if name == "logits" else name for name in node.output]
    order = [1, 0, *range(2, len(json.loads(facts(graph)["tlkit.labels"])))]
    graph.graph.initializer.append(numpy_helper.from_array(np.array(order), "order"))
    last = helper.make_node("Gather", ["logits.trained", "order"], ["logits"], name="order", axis=1)
    softmax = next(index for index, node in enumerate(graph.graph.node) if "logits" in node.input)
    graph.graph.node.insert(softmax, last)


def change_weight(graph):
    """The largest weight of the head, doubled; below fp32, the tolerance for other machines lets less pass."""
    tensor = next(t for t in graph.graph.initializer if len(t.dims) == 2 and t.name.startswith("head/"))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[np.abs(array).argmax()] *= 2
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


FAULTS = {
    "another mean": normalise(0, lambda mean: mean * 0.9),
    "another std": normalise(1, lambda scale: scale * 0.9),
    "mean of the channels turned round": normalise(0, turned_round),
    "swapped channels": swap_channels,
    "another resize filter": recipe(filter="nearest"),
    "another crop": recipe(crop=0.8),
    "swapped labels": swap_labels,
    "swapped logits": swap_logits,
    "a changed weight": change_weight,
}


class Drops(OnnxSession):
    """A server that forgets the last batch where it is not full."""

    def run(self, array, outputs=None):
        whole = len(array) - len(array) % 2 or 1
        return super().run(array[:whole], outputs)
