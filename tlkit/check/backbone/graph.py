"""That a backbone can be exported, and computes the same once it is."""

from __future__ import annotations

from tlkit.check.backbone.subject import BATCHES, BackboneSubject
from tlkit.check.graph import foreign_operators
from tlkit.check.subject import expect, some
from tlkit.deploy.parity import TOLERANCES, cosines, relative_error
from tlkit.plugin.contract import BATCH


def traces(subject: BackboneSubject) -> None:
    """All stages trace to one ONNX graph, which ONNX's checker and ONNX Runtime accept."""
    subject.in_onnx_runtime(subject.images[:1].numpy())


def batch_is_dynamic(subject: BackboneSubject) -> None:
    """The number of images is left open in the graph, and nothing else is."""
    values = [*subject.graph.graph.input, *subject.graph.graph.output]
    for value in values:
        first, *others = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        fixed = first == BATCH and all(isinstance(axis, int) for axis in others)
        do = "derive shapes from `x.shape` without turning them into numbers, and keep all axes but the first fixed"
        expect(fixed, f"{value.name} has the shape {[first, *others]} in the graph", do=do)


def core_operators_only(subject: BackboneSubject) -> None:
    """The graph is made of ONNX's own operators, which every target knows."""
    foreign = foreign_operators(subject.graph)
    expect(not foreign, f"it needs operators that are not ONNX's: {some(foreign)}", do="write it in plain operators")


def every_cut_agrees(subject: BackboneSubject) -> None:
    """At every cut the graph gives what the stages give, for batches of 1, 2 and 5."""
    tolerance = TOLERANCES["fp32"]
    for batch in BATCHES:
        arrays = subject.in_onnx_runtime(subject.images[-batch:].numpy())
        for name, got, features in zip(subject.trunk.names, arrays, subject.features, strict=True):
            expected = features[-batch:]
            error, cosine = relative_error(expected, got), float(cosines(expected, got).min())
            expect(
                error <= tolerance.error and cosine >= tolerance.cosine,
                f"for {batch} images, {name} differs in the graph: cosine {cosine:.5f}, relative error {error:.2g}",
                do="look for code that depends on Python values or on the batch: a trace keeps them as constants",
            )
