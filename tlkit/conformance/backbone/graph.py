"""Checks that a backbone can be exported and that the graph agrees with it."""

from __future__ import annotations

from tlkit.conformance.backbone.subject import BATCHES, BackboneSubject
from tlkit.conformance.graph import expect_core_operators
from tlkit.conformance.subject import expect
from tlkit.plugin.contract import BATCH
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
