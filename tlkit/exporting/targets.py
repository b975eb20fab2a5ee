"""Write the ONNX graphs of a bundle, and build other targets from them, each through the gate."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tlkit.errors import ArtifactError, ResourceError, UsageError
from tlkit.exporting.gate import ExportResult, Gate
from tlkit.graph import metadata
from tlkit.graph.compose import merge_graphs
from tlkit.graph.quantize import FLAVORS
from tlkit.model import exports
from tlkit.model.bundle import Bundle
from tlkit.model.exports import Export, Exports
from tlkit.model.reference_images import ParityImages
from tlkit.plugin.contract import FEATURES, IMAGES, BuildSource, OptimizationProfile, Progress, Target, silent
from tlkit.plugin.options import to_json
from tlkit.runtime import engine
from tlkit.runtime.session import OnnxSession

if TYPE_CHECKING:
    from torch import nn

    from tlkit.exporting.head_refit import RefittedHead
    from tlkit.verification.trained import TrainedModules


def graphs_of(
    bundle: Bundle,
    trunk: onnx.ModelProto,
    head: onnx.ModelProto,
    precision: str = exports.PRECISION,
    head_from: str = exports.FROM_BUNDLE,
) -> dict[str, onnx.ModelProto]:
    """Return a bundle's three graphs by name, with their metadata."""
    record = bundle.record
    for part in (trunk, head):
        del part.metadata_props[:]  # of graphs that were exported before, in another precision
    graphs = {"trunk": trunk, "head": head, "model": merge_graphs(trunk, head, record.activation)}
    described = metadata.GraphMetadata.of(bundle, precision, head_from)
    for graph in graphs.values():
        described.write(graph)
    return graphs


def write_graphs(
    found: Exports,
    gate: Gate,
    graphs: Mapping[str, onnx.ModelProto],
    *,
    refitted: RefittedHead | None = None,
    more: Mapping[str, object] | None = None,
) -> ExportResult:
    """Write ONNX graphs through the gate; a GateError leaves what was there before.

    `refitted` is their head, where it is not the bundle's own; `more` goes into the manifest.
    """

    def fill(folder: Path) -> dict[str, object]:
        for name, graph in graphs.items():
            file = folder / f"{name}.onnx"
            onnx.save_model(graph, file)
            gate.admit(name, OnnxSession(file))
        gate.keep_expected(OnnxSession(folder / "model.onnx"), folder)
        if refitted is not None:
            refitted.save(folder)
        return {**gate.parity_facts(), **(more or {})}

    head_from = exports.FROM_BUNDLE if refitted is None else exports.FROM_EXPORT
    facts = gate.facts() | {exports.HEAD_FROM: head_from}
    return gate.result(found.write(exports.TARGET, gate.precision, facts, fill).folder)


def build_target(
    modules: TrainedModules,
    found: Exports,
    target: Target,
    parity: ParityImages,
    precision: str,
    profile: OptimizationProfile | None = None,
    progress: Progress = silent,
) -> ExportResult:
    """Build a target from the graphs of a bundle; what it builds passes the gate where it can be run here."""
    source = found.get(exports.TARGET, graphs_for(target, precision))
    expected = OnnxSession(source.file()).run(parity.images)
    sources = {
        name: _build_source(modules, source, name, {**expected, IMAGES: parity.images}) for name in exports.GRAPHS
    }
    gate = Gate(modules.bundle, parity, expected, precision=precision, head_precision=precision)
    machine, profile = dict(target.machine()), profile or OptimizationProfile()
    unproven: list[str] = []

    def fill(folder: Path) -> dict[str, object]:
        for name, made in sources.items():
            place = folder / f"{name}{target.suffix}"
            target.build(made, place, profile, progress)
            if not place.exists():
                raise ArtifactError(f"target {target.name} wrote nothing here", file=place, do="tell its author")
            try:
                if (why := target.incompatible(machine)) is not None:  # built for others than this one
                    unproven.append(why)
                    continue
                session = target.open(place)
                session.metadata = session.metadata or made.metadata
            except ResourceError as error:
                unproven.append(error.what)
                continue
            gate.admit(name, session)
            if name == "model":
                gate.keep_expected(session, folder)
        if source.refitted() is not None:
            shutil.copyfile(source.folder / exports.REFITTED, folder / exports.REFITTED)
        return {**gate.parity_facts(), "unproven": unproven[:1]}

    facts = gate.facts() | {
        "options": to_json(target),
        "profile": asdict(profile),
        "machine": machine,
        exports.HEAD_FROM: source.head_from,
        "metadata": {name: dict(made.metadata) for name, made in sources.items()},
    }
    made = found.write(target.name, precision, facts, fill)
    engine.remember(target, made)
    return gate.result(made.folder, unproven[0] if unproven else None)


def _build_source(
    modules: TrainedModules, source: Export, name: str, arrays: Mapping[str, NDArray[Any]]
) -> BuildSource:
    """Return a graph of an ONNX export as a target builds from it; `arrays` are inputs and outputs by name."""
    file = source.file(name)

    def module() -> nn.Module:
        if source.precision in FLAVORS:
            what = f"in {exports.plain(source.precision)} it exists as a graph alone, not as PyTorch modules"
            raise UsageError(what, file=file)
        return modules.module(name, half=source.precision == "fp16")

    def example(count: int) -> NDArray[Any]:
        rows = arrays[FEATURES if name == "head" else IMAGES]
        return np.resize(rows, (count, *rows.shape[1:]))

    return metadata.build_source(file, module, example)


def graphs_for(target: Target, precision: str) -> str:
    """Return the precision of the ONNX graphs that a target wants for one.

    Raises UsageError for one that it has no use for, ResourceError for a target that can't be built here.
    """
    flavors = (precision, exports.SYMMETRIC) if precision == "int8" else (precision,)
    wanted = next((flavor for flavor in flavors if flavor in target.precisions), None)
    if wanted is None:
        known = dict.fromkeys(map(exports.plain, target.precisions))
        what = f"target {target.name} takes no {precision} graph"
        raise UsageError(what, do=f"choose one of {', '.join(known)} with --precision")
    if (why := target.missing()) is not None:
        raise ResourceError(f"target {target.name} can't be built here: {why}")
    return wanted
