"""Checks that a backbone can be exported and that the graph agrees with it."""

from __future__ import annotations

import numpy as np

from tlkit.conformance.backbone.exported import expect_core_operators, open_graph
from tlkit.conformance.backbone.subject import BATCHES, BackboneSubject
from tlkit.conformance.pictures import preprocessed
from tlkit.conformance.subject import expect
from tlkit.exporting.calibration import ranges
from tlkit.graph.compose import cut_graph
from tlkit.graph.quantize import OPERATORS, quantize
from tlkit.plugin.contract import BATCH, FEATURES
from tlkit.verification.parity import TOLERANCES, cosines, relative_error


def traces(subject: BackboneSubject) -> None:
    """All stages trace to one ONNX graph, which ONNX's checker and ONNX Runtime accept."""
    _ = subject.session


def batch_is_dynamic(subject: BackboneSubject) -> None:
    """Only the batch axis is dynamic in the graph."""
    values = [*subject.graph.graph.input, *subject.graph.graph.output]
    for value in values:
        first, *others = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        fixed = first == BATCH and all(isinstance(axis, int) for axis in others)
        do = "derive shapes from `x.shape` without turning them into numbers, and keep all axes but the first fixed"
        expect(fixed, f"{value.name} has the shape {[first, *others]} in the graph", do=do)


def core_operators_only(subject: BackboneSubject) -> None:
    """The graph is made of ONNX's own operators, which every target knows."""
    expect_core_operators(subject.graph)


def every_cut_agrees(subject: BackboneSubject) -> None:
    """At every cut the graph gives what the stages give, for batches of 1, 2 and 5."""
    tolerance = TOLERANCES["fp32"]
    for rows in BATCHES:
        images = subject.images[rows].numpy()
        graph = subject.session.run(images).values()  # in the order of the outputs, which is that of the stages
        for name, got, features in zip(subject.trunk.names, graph, subject.features, strict=True):
            error, cosine = relative_error(features[rows], got), float(cosines(features[rows], got).min())
            expect(
                error <= tolerance.error and cosine >= tolerance.cosine,
                f"for {len(images)} images, {name} differs in the graph: cosine {cosine:.5f}, error {error:.2g}",
                do="look for code that depends on Python values or on the batch: a trace keeps them as constants",
            )


def quantizes_to_int8(subject: BackboneSubject) -> None:
    """In int8 the graph opens, and the features of twenty pictures keep a cosine of at least 0.8 to those in fp32.

    It tells a graph that computes something else; the accuracy in int8 is judged at export.
    """
    given = subject.preprocessing
    fp32 = cut_graph(subject.graph, subject.trunk.names[-1])
    images = preprocessed(given)
    int8 = open_graph(quantize(fp32, ranges(fp32, images, given, OPERATORS)))
    expected, got = (each.run(images, [FEATURES])[FEATURES] for each in (open_graph(fp32), int8))
    do = "exempt it with the reason if its activations need more than 8 bits; it is then deployed as fp16 or fp32"
    expect(bool(np.isfinite(got).all()), "its features in int8 are not finite", do=do)
    cosine = float(cosines(expected, got).min())
    expect(cosine >= TOLERANCES["int8"].cosine, f"in int8, the cosine to its features is {cosine:.3f}", do=do)
