"""From a bundle to its by-products, each checked on real images before it takes its place."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from safetensors.numpy import save

from tlkit.errors import GateError, ResourceError, UsageError
from tlkit.exporting.head_refit import Refitted
from tlkit.graph import metadata, trace
from tlkit.graph.compose import cut_graph, merge_graphs
from tlkit.graph.metadata import describe_graph
from tlkit.model import exports
from tlkit.model.bundle import Bundle
from tlkit.model.modules import load_modules, run_modules
from tlkit.model.reference_images import golden_pixels, parity_images
from tlkit.plugin.contract import (
    FEATURES,
    LOGITS,
    Backbone,
    Head,
    OptimizationProfile,
    Progress,
    Session,
    Target,
    silent,
)
from tlkit.plugin.options import to_json
from tlkit.runtime import engine
from tlkit.runtime.session import OnnxSession
from tlkit.verification.parity import TOLERANCES, HeadOf, Verdict, compare, head_of
from tlkit.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Published:
    """Where the files are, which images they were checked on, and the verdict on each.

    `unproven` says why there is no verdict, where what was built can't be run on this machine.
    """

    place: Path
    images: int
    drawn_from: str
    verdicts: dict[str, Verdict]
    unproven: str | None = None


def publish_onnx(bundle: Bundle, backbone: Backbone, head: Head, *, data: Path | None = None) -> Published:
    """Write `trunk.onnx`, `head.onnx` and `model.onnx`; a `GateError` leaves what was there before."""
    images, drawn_from = parity_images(bundle, data)
    trunk, module = load_modules(bundle, backbone, head)
    expected = run_modules(trunk, module, images)
    trunk_graph = cut_graph(onnx.load_model(trace.stage_graph(trunk)), bundle.record.cut)
    graphs = graphs_of(bundle, trunk_graph, trace.head_graph(module, bundle.record.width))
    return publish_graphs(bundle, graphs, expected, images, drawn_from)


def half_trunk(bundle: Bundle, backbone: Backbone, head: Head) -> onnx.ModelProto:
    """The graph of a bundle's trunk with its stages in half precision."""
    return trace.half_precision_graph(load_modules(bundle, backbone, head)[0])


def graphs_of(
    bundle: Bundle,
    trunk: onnx.ModelProto,
    head: onnx.ModelProto,
    precision: str = exports.PRECISION,
    head_from: str = exports.FROM_BUNDLE,
) -> dict[str, onnx.ModelProto]:
    """A bundle's three graphs by name, each of which says what it is."""
    record = bundle.record
    for part in (trunk, head):
        del part.metadata_props[:]  # of graphs that were exported before, in another precision
    graphs = {"trunk": trunk, "head": head, "model": merge_graphs(trunk, head)}
    names = {
        metadata.BUNDLE: bundle.digest,
        metadata.BACKBONE: record.backbone.name,
        metadata.CUT: record.cut,
        metadata.HEAD: record.head.name,
        metadata.HEAD_FROM: head_from,
        metadata.PRECISION: precision,
    }
    for graph in graphs.values():
        describe_graph(graph, metadata.facts(record.preprocessing, record.labels, names))
    return graphs


def publish_graphs(
    bundle: Bundle,
    graphs: Mapping[str, onnx.ModelProto],
    expected: Mapping[str, NDArray[np.float32]],
    images: NDArray[np.uint8],
    drawn_from: str,
    *,
    precision: str = exports.PRECISION,
    refitted: Refitted | None = None,
    more: Mapping[str, object] | None = None,
) -> Published:
    """Write graphs that give `expected` for `images`; a `GateError` leaves what was there before.

    `refitted` is their head, where it is not the bundle's own.
    """
    verdicts: dict[str, Verdict] = {}
    below = precision != exports.PRECISION

    def fill(place: Path) -> dict[str, object]:
        for name, graph in graphs.items():
            file = place / f"{name}.onnx"
            onnx.save_model(graph, file)
            inputs = expected[FEATURES] if name == "head" else images
            tolerance = TOLERANCES[exports.PRECISION if name == "head" else precision]  # a head is float in all of them
            head = head_of(OnnxSession(place / "head.onnx")) if name == "model" and below else None
            verdicts[name] = compare(expected, OnnxSession(file), inputs, tolerance=tolerance, head=head)
            _gate(name, verdicts[name], bundle)
        _keep_expected(bundle, OnnxSession(place / "model.onnx"), place, precision)
        if refitted is not None:
            refitted.save(place)
        return {"parity": {name: verdict.to_json() for name, verdict in verdicts.items()}, **(more or {})}

    head_from = exports.FROM_BUNDLE if refitted is None else exports.FROM_EXPORT
    facts = _facts(bundle, len(images), drawn_from) | {exports.HEAD_FROM: head_from}
    place = exports.write(bundle.root, exports.TARGET, precision, facts, fill)
    return Published(place, len(images), drawn_from, verdicts)


def publish_target(
    bundle: Bundle,
    target: Target,
    *,
    precision: str = exports.PRECISION,
    profile: OptimizationProfile | None = None,
    data: Path | None = None,
    progress: Progress = silent,
) -> Published:
    """Build a target's files from the ONNX graphs of a bundle and hold them against these where they can be run."""
    wanted = graphs_for(target, precision)
    images, drawn_from = parity_images(bundle, data)
    sources = {name: exports.graph_file(bundle.root, name, precision=wanted) for name in exports.GRAPHS}
    expected = OnnxSession(sources["model"]).run(images)
    machine = dict(target.machine())
    origin = bundle.root / exports.TARGET / wanted
    verdicts: dict[str, Verdict] = {}
    unproven: list[str] = []

    def fill(place: Path) -> dict[str, object]:
        head: HeadOf | None = None
        for name, graph in sources.items():
            file = place / f"{name}{target.suffix}"
            target.build_with_progress(graph, file, profile or OptimizationProfile(), progress)
            try:
                if (why := target.incompatible(machine)) is not None:  # built for others than this one
                    unproven.append(why)
                    continue
                session = target.open(file)
            except ResourceError as error:
                unproven.append(error.what)
                continue
            inputs = expected[FEATURES] if name == "head" else images
            if name == "head" and precision != exports.PRECISION:
                head = head_of(session)
            verdicts[name] = compare(expected, session, inputs, tolerance=TOLERANCES[precision], head=head)
            _gate(name, verdicts[name], bundle)
            if name == "model":
                _keep_expected(bundle, session, place, precision)
        if exports.refitted(origin) is not None:
            shutil.copyfile(origin / exports.REFITTED, place / exports.REFITTED)
        return {"parity": {name: verdict.to_json() for name, verdict in verdicts.items()}, "unproven": unproven[:1]}

    facts = _facts(bundle, len(images), drawn_from) | {
        "options": to_json(target),
        "profile": asdict(profile or OptimizationProfile()),
        "machine": machine,
        exports.HEAD_FROM: exports.head_from(origin),
        **engine.facts(target, sources),
    }
    place = exports.write(bundle.root, target.name, precision, facts, fill)
    engine.remember(target, place)
    return Published(place, len(images), drawn_from, verdicts, unproven[0] if unproven else None)


def graphs_for(target: Target, precision: str) -> str:
    """The precision of the ONNX graphs that a target wants for one.

    Refuses one that it has no use for, and a target that can't be built here.
    """
    flavours = (precision, exports.SYMMETRIC) if precision == "int8" else (precision,)
    wanted = next((flavour for flavour in flavours if flavour in target.precisions), None)
    if wanted is None:
        known = dict.fromkeys(map(exports.plain, target.precisions))
        what = f"target {target.name} takes no {precision} graph"
        raise UsageError(what, do=f"choose one of {', '.join(known)} with --precision")
    if (why := target.missing()) is not None:
        raise ResourceError(f"target {target.name} can't be built here: {why}")
    return wanted


def _keep_expected(bundle: Bundle, session: Session, place: Path, precision: str) -> None:
    """Below fp32, write what a model gives for the golden images: no other machine will have to allow for more."""
    if precision != exports.PRECISION and bundle.record.golden:
        got = session.run(golden_pixels(bundle), [FEATURES, LOGITS])
        (place / exports.EXPECTED).write_bytes(save({name: np.ascontiguousarray(array) for name, array in got.items()}))


def _gate(name: str, verdict: Verdict, bundle: Bundle) -> None:
    if not verdict.passed:
        raise GateError(f"{name} does not compute what was trained: {verdict.summary()}", file=bundle.root)


def _facts(bundle: Bundle, images: int, drawn_from: str) -> dict[str, object]:
    """What the record of every by-product says."""
    return {
        "bundle": bundle.digest,
        "tlkit": __version__,
        "versions": {package: version(package) for package in ("torch", "onnx", "onnxruntime")},
        "parity_images": {"count": images, "from": drawn_from},
    }
